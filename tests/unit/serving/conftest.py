from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from eagleray.serving import scaling, serve_scaling_ray260
from support.serve_autoscaler import APP, MOVED, Claims, autoscaler_of
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
_MANY = {"test_many_keys_at_once"}
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


@pytest.fixture
def claims(monkeypatch) -> Iterator[Claims]:
    """In charge of this process's Serve, until the end of the test."""
    from ray.serve import autoscaling_policy
    from ray.serve._private.deployment_scheduler import DeploymentScheduler

    for owner, name in (
        (autoscaling_policy, "_get_cold_start_scale_up_replicas"),
        (DeploymentScheduler, "_schedule_replica"),
        (DeploymentScheduler, "_get_replicas_to_stop"),
    ):
        assert hasattr(owner, name), MOVED
        monkeypatch.setattr(owner, name, getattr(owner, name))
    found = Claims()
    monkeypatch.setattr(scaling, "of_this_process", lambda: found)
    scaling.prepare()
    serve_scaling_ray260.take_charge(Claims())  # changes nothing
    yield found
    del DeploymentScheduler._eagleray


@pytest.fixture
def deployment():
    from ray.serve._private.common import DeploymentID

    return DeploymentID(name="Model", app_name=APP)


@pytest.fixture
def autoscaler(deployment, monkeypatch):
    """Serve's, of a service with 0 to 3 replicas."""
    return autoscaler_of(deployment, monkeypatch)


@pytest.fixture
def clock(monkeypatch):
    """Of Serve's controller."""
    from ray.serve._private import autoscaling_state

    now = SimpleNamespace(s=1_000_000.0)
    monkeypatch.setattr(
        autoscaling_state, "time", SimpleNamespace(time=lambda: now.s, monotonic=lambda: now.s)
    )
    return now


@pytest.fixture
def logged(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("ray.serve"), "level", logging.INFO)
    return caplog
