"""Inside the controller of Ray Serve 2.60: where replicas are, where they start, and which are stopped first.

Serve starts replicas wherever there is room, and stops those on the emptiest nodes. The ledger grants and
takes back units on named nodes. And where none runs, Serve starts one without asking any policy.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from eagleray.serving.scaling_policy import POLICY
from eagleray.serving.service_claims import Replicas, ServiceClaims

_STOPPING = ("STOPPING", "STOPPED")
_LOOK_S = 5.0


def replicas(deployment_id: Any, bundle: Mapping[str, float]) -> Replicas:
    """What Serve has of a deployment whose replicas take `bundle` each; for its controller's event loop."""
    return _replicas(deployment_id, bundle) or Replicas()


def looker(deployment_id: Any, bundle: Mapping[str, float]) -> Callable[[], Replicas | None]:
    """Of the same for another thread; None from it: Serve has no such deployment any more."""
    loop = asyncio.get_running_loop()

    async def look() -> Replicas | None:
        return _replicas(deployment_id, bundle)

    return lambda: asyncio.run_coroutine_threadsafe(look(), loop).result(_LOOK_S)


def _replicas(deployment_id: Any, bundle: Mapping[str, float]) -> Replicas | None:
    state = _controller().deployment_state_manager._deployment_states.get(deployment_id)
    if state is None:
        return None
    sent = state._deployment_scheduler._launching_replicas.get(deployment_id, {})
    staying, stopping, unplaced, is_recovering = Counter[str](), Counter[str](), 0, False
    former, former_stopping = Counter[str](), Counter[str]()
    for replica in state._replicas.get():
        now, node = replica.actor_details.state.value, replica.actor_node_id
        is_former = not _takes(replica.version.ray_actor_options or {}, bundle)
        if node is None and replica.replica_id in sent:
            node = sent[replica.replica_id].target_node_id  # till its process answers: long after it has room
        if node is not None and is_former:
            (former_stopping if now in _STOPPING else former)[node] += 1
        elif node is not None:
            (stopping if now in _STOPPING else staying)[node] += 1
        elif now not in _STOPPING and not is_former:
            unplaced += 1
            is_recovering |= now == "RECOVERING"
    return Replicas(staying, stopping, unplaced, is_recovering, former, former_stopping)


def told(deployment_id: Any) -> list[Mapping[str, Any]]:
    """What gateways have said of a deployment lately: points by name and gateway, of each report."""
    manager = _controller().autoscaling_state_manager
    app = manager._app_autoscaling_states.get(deployment_id.app_name)
    return reports(app._deployment_autoscaling_states.get(deployment_id)) if app is not None else []


def reports(autoscaler: Any) -> list[Mapping[str, Any]]:
    """The same, of the deployment's own state; reports of Serve's handles have the same form."""
    if autoscaler is None:
        return []
    return [report.metrics for report in autoscaler._handle_store.objects.values()]


def _takes(options: Mapping[str, Any], bundle: Mapping[str, float]) -> bool:
    """Whether an actor with these options takes `bundle`."""
    return all(
        float(options.get(option) or 0) == bundle.get(resource, 0.0)
        for option, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU"))
    )


@functools.cache
def _controller() -> Any:
    """The object behind the actor that this process is."""
    from ray._private.worker import global_worker

    return next(
        actor for actor in global_worker.actors.values() if hasattr(actor, "deployment_state_manager")
    )


def take_charge(claims: ServiceClaims) -> None:
    """Let `claims` say where replicas start and which go first, in this process; once is enough."""
    from ray.serve import autoscaling_policy
    from ray.serve._private.deployment_scheduler import DeploymentScheduler

    if "_eagleray" in vars(DeploymentScheduler):
        return
    DeploymentScheduler._eagleray = claims  # pyright: ignore[reportAttributeAccessIssue]
    start_first = autoscaling_policy._get_cold_start_scale_up_replicas
    schedule, choose = DeploymentScheduler._schedule_replica, DeploymentScheduler._get_replicas_to_stop

    @functools.wraps(start_first)
    def start_first_of_others(context: Any) -> int | None:
        return None if context.config.policy.policy_function == POLICY else start_first(context)

    @functools.wraps(schedule)
    def schedule_as_granted(
        self: Any,
        scheduling_request: Any,
        default_scheduling_strategy: str,
        target_node_id: str | None = None,
        target_labels: Any = None,
    ) -> bool:
        if target_node_id is None and target_labels is None:
            place = claims.place(*_sent(self, scheduling_request.replica_id.deployment_id))
            if place is None:
                return False  # it stays pending, and is tried again in a tenth of a second
            target_node_id = place or None
        return schedule(self, scheduling_request, default_scheduling_strategy, target_node_id, target_labels)

    @functools.wraps(choose)
    def stop_as_asked(self: Any, deployment_id: Any, *args: Any, **options: Any) -> set[Any]:
        chosen = choose(self, deployment_id, *args, **options)
        running = self._running_replicas[deployment_id]
        leaving = claims.leaving(deployment_id.app_name, running)
        spared = [replica for replica in running if replica in chosen and replica not in leaving]
        asked = [replica for replica in leaving if replica not in chosen]
        num = min(len(spared), len(asked))
        return (chosen - set(spared[:num])) | set(asked[:num])

    autoscaling_policy._get_cold_start_scale_up_replicas = start_first_of_others
    DeploymentScheduler._schedule_replica = schedule_as_granted
    DeploymentScheduler._get_replicas_to_stop = stop_as_asked


def _sent(scheduler: Any, deployment_id: Any) -> tuple[str, Counter[str]]:
    """The application, and its replicas by the node that they run on or have been sent to."""
    launching = (info.target_node_id for info in scheduler._launching_replicas[deployment_id].values())
    running = scheduler._running_replicas[deployment_id].values()
    return deployment_id.app_name, Counter([*running, *(node for node in launching if node is not None)])
