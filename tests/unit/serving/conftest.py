from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.serving import Pretend, pretend

BOTH_TRANSPORTS = {"test_v2", "test_v2_binary", "test_openai_routes", "test_people", "test_bad_input"}
"""The suite of requests: the same over links as by Serve's handles, for which a pretending one stands."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have each test of the suite twice."""
    if "ingress" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in BOTH_TRANSPORTS:
        metafunc.parametrize("ingress", ["handles", "links"], indirect=True)


@pytest.fixture
def ingress(request: pytest.FixtureRequest) -> Iterator[Pretend]:
    """A new ingress in front of pretending models; inference needs no key."""
    found = pretend(over_links=getattr(request, "param", "") == "links")
    yield found
    if found.links is not None:
        found.links.close()
