"""The ledger inside Serve's controller: Serve's own scheduler and autoscaler, with ours in charge."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.serving import serve_scaling_ray260
from eagleray.serving.scaling_policy import POLICY, ServiceScaling
from eagleray.serving.service_claims import Replicas
from support.serve_autoscaler import APP, MOVED, autoscaler_of, decided, reasons, replica, told

NODE = "ab" * 28


class Actor:
    """Takes the options that Serve starts a replica with."""

    def __init__(self) -> None:
        self.options_seen: dict[str, Any] = {}

    def options(self, **options: Any) -> Actor:
        self.options_seen = options
        return self

    def remote(self, *_: Any) -> Actor:
        return self


@pytest.fixture
def scheduler(deployment):
    """Serve's, with one deployment."""
    from ray.serve._private import deployment_scheduler

    config = SimpleNamespace(
        resource_dict={"CPU": 1}, ray_actor_options={}, placement_group_bundle_label_selector=None,
        max_replicas_per_node=None, placement_group_bundles=None, placement_group_strategy=None,
    )  # fmt: skip
    nodes = SimpleNamespace(get_node_labels=lambda _node: {})
    found = deployment_scheduler.DeploymentScheduler(nodes, "head", lambda _request: None)
    found.on_deployment_created(deployment, deployment_scheduler.SpreadDeploymentSchedulingPolicy())
    found.on_deployment_deployed(deployment, config)
    return found


def started(scheduler, deployment, name: str) -> Any:
    """The scheduling strategy with which Serve starts a replica."""
    from ray.serve._private.deployment_scheduler import ReplicaSchedulingRequest

    actor = Actor()
    request = ReplicaSchedulingRequest(
        replica(deployment, name), actor, {"CPU": 1}, {"name": name}, (), lambda *_, **__: None
    )
    scheduler.schedule({deployment: [request]}, {})
    return actor.options_seen.get("scheduling_strategy")


def test_a_replica_starts_where_it_was_granted(claims, scheduler, deployment):
    assert started(scheduler, deployment, "r1") == "SPREAD"
    scheduler.on_replica_running(replica(deployment, "r1"), "a")
    claims.node = NODE
    strategy = started(scheduler, deployment, "r2")
    assert (strategy.node_id, strategy.soft, strategy._spill_on_unavailable) == (NODE, True, True)
    started(scheduler, deployment, "r3")
    assert claims.taken == [(APP, Counter()), (APP, Counter(["a"])), (APP, Counter(["a", NODE]))]


def test_a_replica_that_is_not_granted_yet_waits_in_serve(claims, scheduler, deployment):
    claims.node = None
    assert started(scheduler, deployment, "r1") is None
    claims.node = NODE
    assert scheduler.schedule({}, {}) == {}
    assert list(scheduler._launching_replicas[deployment]) == [replica(deployment, "r1")]


def test_the_replica_that_a_notice_names_is_stopped(claims, scheduler, deployment):
    from ray.serve._private.deployment_scheduler import DeploymentDownscaleRequest

    replicas = [replica(deployment, name) for name in ("r1", "r2", "r3")]
    for one, node in zip(replicas, "abc", strict=True):
        scheduler.on_replica_running(one, node)

    def stopped(number: int) -> set[str]:
        found = scheduler.schedule({}, {deployment: DeploymentDownscaleRequest(deployment, number)})
        return {one.unique_id for one in found[deployment]}

    own = [stopped(number) for number in (1, 2)]
    assert [len(found) for found in own] == [1, 2]
    for one in replicas:
        claims.leaves = [one]
        assert stopped(1) == {one.unique_id}
        assert one.unique_id in stopped(2)
        assert len(stopped(2)) == 2
    started(scheduler, deployment, "r4")
    assert stopped(1) == {"r4"}, "what does not answer yet goes first"
    assert stopped(2) == {"r4", "r3"}


def test_serve_runs_what_its_requests_need_and_the_ledger_grants(claims, autoscaler, deployment, monkeypatch):
    def runs(*now: float) -> int:
        return decided(autoscaler, deployment, monkeypatch, *now)

    assert runs(0, 1, 0) == 1
    claims.grants = 0
    assert runs(0, 1, 0) == 1, "only it shows whether the package is good"
    assert runs(1, 1, 0) == 0
    assert runs(0, 0, 2) == 0, "from zero nothing starts ungranted, whatever Serve would do"
    assert claims.asks[-1].wanted == 1
    claims.grants = 1
    assert runs(0, 0, 2) == 1
    assert runs(1, 1, 9) == 1
    assert claims.asks[-1].wanted == 3
    claims.grants = 2
    assert runs(1, 1, 9) == 2
    claims.grants = None
    assert runs(1, 1, 9) == 3
    claims.grants = 1
    assert runs(3, 3, 9) == 1, "a notice is obeyed at once"
    ask = claims.asks[-1]
    assert (ask.app, ask.bundle, ask.label_selector, ask.floor) == (APP, {"CPU": 1.0}, {"pool": "x"}, 0)


def test_requests_that_come_past_serve_are_counted(claims, autoscaler, deployment, monkeypatch, clock):
    told(autoscaler, deployment, clock.s, under_way=5, requests=5)
    assert decided(autoscaler, deployment, monkeypatch, 1, 1, 0) == 3


@pytest.mark.parametrize("objective_p95_ms", [None, 100])
def test_a_schedule_raises_the_floor(claims, deployment, monkeypatch, clock, logged, objective_p95_ms):
    autoscaler = autoscaler_of(
        deployment, monkeypatch, min_replicas=1, objective_p95_ms=objective_p95_ms,
        schedules=["mon-fri 08:00-20:00 min 2"], time_zone="Europe/Berlin",
    )  # fmt: skip
    clock.s = datetime.fromisoformat("2026-11-26 07:59:59+01:00").timestamp()
    assert decided(autoscaler, deployment, monkeypatch, 1, 1, 0) == 1
    clock.s += 1
    assert decided(autoscaler, deployment, monkeypatch, 1, 1, 0) == 2
    assert (claims.asks[-1].floor, claims.asks[-1].wanted) == (2, 2)
    [line] = reasons(logged)
    assert line.endswith("by schedule 'mon-fri 08:00-20:00 min 2' (Europe/Berlin)")
    clock.s += 12 * 3600
    for _ in range(20 * 70):
        clock.s += 0.1
        found = decided(autoscaler, deployment, monkeypatch, 2, 2, 0)
    assert (found, claims.asks[-1].floor) == (1, 1)


def test_a_policy_that_was_deployed_before_an_upgrade_still_scales(
    claims, autoscaler, deployment, monkeypatch
):
    terms = {"bundle": {"CPU": 1.0}, "label_selector": {}, "idle_s": 0.0}
    autoscaler.update_running_replica_ids([replica(deployment, "r0")])
    monkeypatch.setattr(autoscaler, "get_total_num_requests", lambda: 6)
    found, _ = ServiceScaling(**terms)(autoscaler.get_autoscaling_context(1))
    assert found == 3


def test_services_of_others_start_from_zero_as_ever(claims):
    from ray.serve import autoscaling_policy

    context = SimpleNamespace(
        config=SimpleNamespace(
            policy=SimpleNamespace(policy_function="theirs:policy"), get_upscaling_factor=lambda: 1
        ),
        current_num_replicas=0,
        total_num_requests=1,
        target_num_replicas=0,
    )
    assert autoscaling_policy._get_cold_start_scale_up_replicas(context) == 1


def test_a_fault_of_ours_leaves_serves_own_scaling(claims, autoscaler, deployment, monkeypatch, caplog):
    monkeypatch.setattr(claims, "granted", None)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])
    assert [decided(autoscaler, deployment, monkeypatch, 1, 1, 6) for _ in range(2)] == [3, 3]
    assert [record.message for record in caplog.records] == [f"{APP}: scaled without the ledger"]


def test_the_policy_travels_by_value_with_nothing_in_it():
    """So that after an upgrade Serve's controller runs what is installed, and not what was deployed."""
    from ray.serve.config import AutoscalingPolicy

    policy = AutoscalingPolicy(policy_function=POLICY, policy_kwargs={"idle_s": 1})
    assert policy.get_policy().__name__ == ServiceScaling.__name__
    assert b"num_replicas" in policy._serialized_policy_def, "its code, which imports all the rest"
    assert len(policy._serialized_policy_def) < 4000


def test_where_serve_keeps_its_replicas(monkeypatch, deployment):
    import inspect

    from ray._private.worker import Worker
    from ray.serve._private import controller, deployment_state
    from ray.serve._private.common import ReplicaState
    from ray.serve._private.config import DeploymentConfig
    from ray.serve._private.deployment_scheduler import LaunchingReplicaInfo
    from ray.serve._private.version import DeploymentVersion

    assert "self._deployment_scheduler" in inspect.getsource(deployment_state.DeploymentState), MOVED
    assert "self.actors" in inspect.getsource(Worker.__init__), MOVED
    assert "self.deployment_state_manager" in inspect.getsource(controller), MOVED
    assert "self._deployment_states" in inspect.getsource(deployment_state.DeploymentStateManager), MOVED
    for name in ("actor_details", "actor_node_id", "version"):
        assert hasattr(deployment_state.DeploymentReplica, name), MOVED
    container = deployment_state.ReplicaStateContainer()
    states = (
        *(("RUNNING", "a"), ("RUNNING", "a"), ("STARTING", "b"), ("STARTING", None)),
        *(("STOPPING", "b"), ("STOPPING", None), ("PENDING_MIGRATION", "c"), ("STARTING", None)),
        *(("RUNNING", "a"), ("STOPPING", "c"), ("STARTING", None)),  # of an earlier setting
    )
    now, before = (
        DeploymentVersion("1", DeploymentConfig(), {"num_cpus": cpus, "num_gpus": 0}) for cpus in (1.0, 2.0)
    )
    sent = LaunchingReplicaInfo(target_node_id="d")
    scheduler = SimpleNamespace(_launching_replicas={deployment: {7: sent, 3: LaunchingReplicaInfo()}})
    for number, (state, node) in enumerate(states):
        version = now if number < 8 else before
        one = SimpleNamespace(
            replica_id=number, version=version, actor_node_id=node, actor_details=SimpleNamespace(state=None)
        )
        one.update_state = lambda now, one=one: setattr(one.actor_details, "state", now)
        container.add(ReplicaState(state), one)
    manager = SimpleNamespace(
        _deployment_states={deployment: SimpleNamespace(_replicas=container, _deployment_scheduler=scheduler)}
    )
    serve = SimpleNamespace(deployment_state_manager=manager)
    monkeypatch.setattr(serve_scaling_ray260, "_controller", lambda: serve)
    found = serve_scaling_ray260.replicas(deployment, {"CPU": 1.0})
    former = {"former": {"a": 1}, "former_stopping": {"c": 1}}
    assert found == Replicas({"a": 2, "b": 1, "c": 1, "d": 1}, {"b": 1}, unplaced=1, **former)
    assert (found.present, found.used) == (6, Counter(a=2, b=2, c=1, d=1))
    assert serve_scaling_ray260._replicas("another", {}) is None
