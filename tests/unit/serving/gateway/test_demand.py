"""What a gateway tells of what waits and comes there: when, and in a form that Serve takes."""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import SimpleNamespace

import pytest

from eagleray.serving import serve_scaling_ray260, signals
from eagleray.serving.gateway import demand as demands
from eagleray.serving.gateway import telling_ray260
from eagleray.serving.gateway.demand import EVERY_S, Demand, Statement
from eagleray.serving.gateway.telling_ray260 import Teller, report
from eagleray.serving.rates import Count
from support.links import run, until

MOVED = "Ray moved this; the pin is ray==2.60.*: adapt gateway/telling_ray260.py"
APP = "m--digits--v3"


class Clock:
    s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_counts_are_told_every_second_until_nothing_comes_any_more(clock):
    demand, found = Demand(clock), []
    for second in range(8):
        demand.told(APP, queued=0, arrived=10 * min(second, 3))
        found += demand.due()
        assert demand.due() == [], "once is enough"
        clock.s += EVERY_S
    assert found[0] == Statement(APP, 1001.0, 0, 0, ((1000.0, 0), (1001.0, 10)))
    assert [one.arrived[1] for one in found[1:]] == [
        (1002.0, 20), (1003.0, 30), (1004.0, 30), (1005.0, 30),
    ]  # fmt: skip
    demand.told(APP, queued=0, arrived=31)
    [after_a_pause] = demand.due()
    assert after_a_pause.arrived == ((1007.0, 30), (1008.0, 31)), (
        "a rate of the last second, not of the pause"
    )


def test_what_begins_to_wait_is_told_at_once_and_again_while_it_waits(clock):
    demand = Demand(clock)
    demand.parked(APP, 1, 0, is_wanted=False)
    assert demand.is_urgent.is_set()
    assert [one.queued for one in demand.due()] == [1]
    assert not demand.is_urgent.is_set()
    demand.parked(APP, 2, 0, is_wanted=False)
    demand.told(APP, queued=5, arrived=7, texts=3)
    assert not demand.is_urgent.is_set(), "it is known that something waits"
    assert demand.due() == []
    for _ in range(20):
        clock.s += EVERY_S
        assert [(one.queued, one.texts, one.arrived[1][1]) for one in demand.due()] == [(7, 3, 7)]
    demand.parked(APP, 0, 0, is_wanted=True)
    demand.told(APP, queued=0, arrived=7)
    clock.s += EVERY_S
    assert [one.queued for one in demand.due()] == [1], "who was sent away comes again"
    demand.parked(APP, 0, 0, is_wanted=False)
    clock.s += EVERY_S
    assert [one.queued for one in demand.due()] == [0]
    demand.told(APP, queued=1, arrived=8)
    assert demand.is_urgent.is_set()
    assert [one.queued for one in demand.due()] == [1]
    demand.keep_only(["another"])
    clock.s += EVERY_S
    assert demand.due() == []


def test_who_owns_queues_is_asked_before_anything_is_told(clock):
    demand = Demand(clock)
    demand.look = lambda: demand.told(APP, queued=2, arrived=50)
    [one] = demand.due()
    assert (one.queued, one.arrived) == (2, ((999.0, 0), (1000.0, 50)))


@pytest.fixture
def autoscaler():
    from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
    from ray.serve._private.common import DeploymentID

    found = DeploymentAutoscalingState(DeploymentID("Model", APP))
    found._config = SimpleNamespace(aggregation_function="mean", metrics_interval_s=1.0)
    return found


def test_serve_takes_it_as_its_own_queue_and_the_policy_reads_the_rest(autoscaler):
    from ray.serve._private import controller
    from ray.serve._private.common import DeploymentHandleSource

    assert "def record_autoscaling_metrics_from_handle" in inspect.getsource(controller), MOVED
    for gateway, queued, texts, arrived in (("g1", 4, 1, 30), ("g2", 2, 0, 5)):
        said = report(gateway, Statement(APP, 1000.0, queued, texts, ((999.0, 10), (1000.0, arrived))))
        assert said.handle_source == DeploymentHandleSource.REPLICA, "else it outlives its gateway"
        assert said.deployment_id.app_name == APP
        autoscaler.record_request_metrics_for_handle(said)
    assert autoscaler._get_queued_requests() == pytest.approx(6), MOVED
    assert autoscaler.get_total_num_requests() == pytest.approx(6), MOVED
    told = signals.read_told(serve_scaling_ray260.reports(autoscaler))
    assert told.arrived == {"g1": Count(999.0, 10.0, 1000.0, 30.0), "g2": Count(999.0, 10.0, 1000.0, 5.0)}
    assert told.texts == 1.0
    autoscaler.drop_stale_handle_metrics({""})
    assert serve_scaling_ray260.reports(autoscaler) != []
    autoscaler.drop_stale_handle_metrics(set())
    assert serve_scaling_ray260.reports(autoscaler) == [], "their gateways have ended"
    assert serve_scaling_ray260.reports(None) == []


def test_where_serve_keeps_what_handles_say(monkeypatch, autoscaler):
    from ray.serve._private.autoscaling_state import ApplicationAutoscalingState, AutoscalingStateManager

    manager = AutoscalingStateManager()
    serve = SimpleNamespace(autoscaling_state_manager=manager)
    monkeypatch.setattr(serve_scaling_ray260, "_controller", lambda: serve)
    assert serve_scaling_ray260.told(autoscaler._deployment_id) == []
    app = manager._app_autoscaling_states[APP] = ApplicationAutoscalingState(APP)
    assert serve_scaling_ray260.told(autoscaler._deployment_id) == []
    app._deployment_autoscaling_states[autoscaler._deployment_id] = autoscaler
    manager.record_request_metrics_for_handle(report("g", Statement(APP, 1.0, 3, 0, ((0.0, 0), (1.0, 3)))))
    [found] = serve_scaling_ray260.told(autoscaler._deployment_id)
    assert signals.ARRIVED in found


class Serve:
    """Its controller."""

    def __init__(self) -> None:
        self.heard = []
        self.error: Exception | None = None
        self.record_autoscaling_metrics_from_handle = SimpleNamespace(remote=self.hear)

    async def hear(self, said) -> None:
        if self.error is not None:
            raise self.error
        self.heard.append(said)


def test_it_is_told_at_once_and_again_after_serve_was_away(monkeypatch, caplog):
    async def scenario():
        serve, demand = Serve(), Demand()
        monkeypatch.setattr("ray.get_actor", lambda name, namespace: serve)
        monkeypatch.setattr(demands, "EVERY_S", 0.05)
        monkeypatch.setattr(telling_ray260, "EVERY_S", 0.05)
        monkeypatch.setattr(telling_ray260, "_AT_ONCE_S", 0.001)
        teller = Teller(demand)
        teller.start()
        await asyncio.sleep(0)
        serve.error = RuntimeError("away")
        demand.parked(APP, 1, 0, is_wanted=False)
        await until(lambda: "Serve is not told what waits here: RuntimeError: away" in caplog.text)
        serve.error = None
        await until(lambda: len(serve.heard) > 2)
        assert {said.queued_requests[-1].value for said in serve.heard} == {1.0}
        assert len({said.handle_id for said in serve.heard}) == 1
        await teller.close()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert sum("away" in record.message for record in caplog.records) == 1, "once"
