from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from support.serving import Pretend, pretend, serving

BOTH_TRANSPORTS = {
    "test_v2",
    "test_v2_binary",
    "test_openai_routes",
    "test_generate_routes",
    "test_people",
    "test_bad_input",
}
"""The suite of requests: the same over links as by Serve's handles, for which a pretending one stands."""
BY_THE_LANE = {
    *("test_v2", "test_v2_binary", "test_bad_input", "test_door", "test_limits"),
    *("test_openai_routes", "test_generate_routes"),
}
"""Those that ask models for something: the same by a gateway's fast lane, on real sockets."""
_MANY = {"test_a_thousand_keys_at_once"}
"""httpx's pool takes a minute for so many connections."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have each test of the suite for each way."""
    module = metafunc.module.__name__.rpartition(".")[2]
    by_the_lane = module in BY_THE_LANE and metafunc.function.__name__ not in _MANY
    ways = ["handles", *["links"] * (module in BOTH_TRANSPORTS), *["lane"] * by_the_lane]
    if "ingress" in metafunc.fixturenames and len(ways) > 1:
        metafunc.parametrize("ingress", ways, indirect=True)


@pytest.fixture
def ingress(request: pytest.FixtureRequest) -> Iterator[Pretend]:
    """A new ingress in front of pretending models; inference needs no key."""
    way = getattr(request, "param", "handles")
    found = pretend(over_links=way != "handles")
    with serving(found) if way == "lane" else nullcontext():
        yield found
    if found.links is not None:
        found.links.close()
