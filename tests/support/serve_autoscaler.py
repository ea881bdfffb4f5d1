"""Serve's own autoscaler of one service, with our policy in it and a ledger that only pretends."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from eagleray.serving import model_app, serve_scaling_ray260
from eagleray.serving.gateway import telling_ray260
from eagleray.serving.gateway.demand import Statement
from eagleray.serving.service_claims import Replicas
from eagleray.specs import ServiceSpec

MOVED = "Ray moved this; the pin is ray==2.60.*: adapt serving/serve_scaling_ray260.py"
APP = "m--digits--v3"


class Claims:
    """As ServiceClaims, with what it says fixed."""

    def __init__(self) -> None:
        self.grants: int | None = None
        self.node: str | None = ""
        self.leaves: list[Any] = []
        self.asks, self.taken = [], []

    def granted(self, ask, replicas, *, meanwhile, look) -> int | None:
        self.asks.append(ask)
        return self.grants

    def place(self, app: str, taken: Counter[str]) -> str | None:
        self.taken.append((app, taken))
        return self.node

    def leaving(self, app: str, running: Any) -> list[Any]:
        return self.leaves if app == APP else []


def replica(deployment, name: str):
    from ray.serve._private.common import ReplicaID

    return ReplicaID(unique_id=name, deployment_id=deployment)


def autoscaler_of(deployment, monkeypatch, **changes):
    from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
    from ray.serve._private.config import DeploymentConfig
    from ray.serve._private.deployment_info import DeploymentInfo

    values = {"min_replicas": 0, "max_replicas": 3, "idle_s": 0, "label_selector": {"pool": "x"}, **changes}
    spec = ServiceSpec(kind="service", name="digits", **values)
    config = model_app.build(spec, {})._bound_deployment._deployment_config
    config = DeploymentConfig.from_proto_bytes(config.to_proto_bytes())  # as it reaches the controller
    found = DeploymentAutoscalingState(deployment)
    replicas = SimpleNamespace(ray_actor_options={})
    target = found.register(DeploymentInfo(config, replicas, 0, "", version="1"), 0)
    assert target == max(1, spec.min_replicas), "the first is tried"
    monkeypatch.setattr(serve_scaling_ray260, "replicas", lambda *_: Replicas())
    monkeypatch.setattr(serve_scaling_ray260, "looker", lambda *_: lambda: None)
    monkeypatch.setattr(serve_scaling_ray260, "told", lambda _: serve_scaling_ray260.reports(found))
    return found


def decided(autoscaler, deployment, monkeypatch, running: int, target: int, requests: float) -> int:
    autoscaler.update_running_replica_ids([replica(deployment, f"r{n}") for n in range(running)])
    monkeypatch.setattr(autoscaler, "get_total_num_requests", lambda: requests)
    return autoscaler.get_decision_num_replicas(target)


def told(autoscaler, deployment, now_s: float, **values: float) -> None:
    """What a replica says reaches Serve's controller."""
    from ray.serve._private.common import ReplicaMetricReport, TimeStampedValue

    one = replica(deployment, "r0")
    metrics = {f"eagleray_{name}": [TimeStampedValue(now_s, value)] for name, value in values.items()}
    autoscaler.record_request_metrics_for_replica(ReplicaMetricReport(one, metrics, now_s))


def gateway_says(autoscaler, now_s: float, queued: int, arrived: tuple[int, int], texts: int = 0) -> None:
    """What a gateway says reaches Serve's controller."""
    counts = ((now_s - 1, arrived[0]), (now_s, arrived[1]))
    said = telling_ray260.report("gateway-1", Statement(APP, now_s, queued, texts, counts))
    autoscaler.record_request_metrics_for_handle(said)


def reasons(logged) -> list[str]:
    return [record.message for record in logged.records if record.message.startswith(f"{APP}: ")]
