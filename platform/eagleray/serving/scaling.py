"""How many replicas a service runs: min(what its requests or its objective need, what the ledger grants).

Called in Serve's controller, ten times a second for each service. What is remembered between two calls Serve
keeps (`memory`); what the ledger granted is read from memory (`service_claims`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eagleray.serving import objective, scaling_reasons, signals
from eagleray.serving.service_claims import Ask, of_this_process
from eagleray.specs import schedule

_UNGRANTED_S = 5.0


@dataclass(frozen=True)
class Load:
    """A service at one moment."""

    time_s: float
    running: int
    """Replicas that answer."""
    target: int
    """Replicas that Serve sees to."""
    needed: float
    """Replicas for the requests under way, by Serve's own policy; of no meaning where none runs."""
    has_requests: bool
    minimum: int
    maximum: int


@dataclass(frozen=True)
class Memory:
    """What one call leaves to the next."""

    wanted: int = 0
    """Replicas, by the last call."""
    less_since_s: float | None = None
    """Since when fewer would do."""
    has_run: bool = False
    """A replica of this deployment has answered."""


def desired(load: Load, memory: Memory, idle_s: float) -> tuple[int, Memory]:
    """How many replicas its requests need; fewer than before only after `idle_s`, as by Serve's own delay.

    Those that were not granted it goes on wanting for a moment: else each request would be asked for anew.
    """
    needed = math.ceil(load.needed) if load.running else max(load.target, 1 if load.has_requests else 0)
    needed = max(load.minimum, min(load.maximum, needed))
    before = max(memory.wanted, load.target)
    has_run = memory.has_run or load.running > 0
    if needed >= before:
        return needed, Memory(needed, None, has_run)
    since_s = load.time_s if memory.less_since_s is None else memory.less_since_s
    if load.time_s - since_s >= idle_s:
        wanted = needed if before == 1 else max(1, needed)
        return wanted, Memory(wanted, None, has_run)
    is_over = before > load.target and load.time_s - since_s >= _UNGRANTED_S
    wanted = max(needed, load.target) if is_over else before
    return wanted, Memory(wanted, since_s, has_run)


def allowed(wanted: int, granted: int | None, load: Load, memory: Memory) -> int:
    """The replicas to run of `wanted`: those that are granted. None: nobody grants or refuses.

    The first one of a deployment is tried without: only it shows whether the package is any good, and until
    then nobody would know why nothing answers. Floors are Serve's own bound.
    """
    if granted is None:
        return wanted
    first = 0 if memory.has_run else min(1, load.target)
    return max(first, min(wanted, granted))


def prepare() -> None:
    """Before Serve starts the first replica of a service: let the claims say where, in this process."""
    from eagleray.serving import serve_scaling_ray260

    serve_scaling_ray260.take_charge(of_this_process())


def num_replicas(
    context: Any,
    *,
    bundle: Mapping[str, float],
    label_selector: Mapping[str, str],
    idle_s: float,
    target_ongoing_requests: float = 2.0,
    objective_s: float | None = None,
    max_batch_size: int = 1,
    schedules: Sequence[str] = (),
    time_zone: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """What `ServiceScaling` returns; tells the ledger what is wanted, by the way, and the log why.

    What was deployed before an upgrade lacks the newer arguments.

    Args:
        context: Serve's AutoscalingContext.
        bundle: What a replica takes of its node.
        label_selector: Of the nodes on which it may run.
        idle_s: How long a replica more than needed stays.
        target_ongoing_requests: For each replica.
        objective_s: The spec's `objective_p95_ms`.
        max_batch_size: Samples of a forward pass.
        schedules: Times with a higher floor.
        time_zone: Of the schedules.
    """
    from eagleray.serving import serve_scaling_ray260

    claims, state = of_this_process(), context.policy_state
    heard = signals.read(context.raw_metrics or {})
    told = signals.read_told(serve_scaling_ray260.told(context.deployment_id))
    needed, why = _by_requests(context, heard, target_ongoing_requests)
    floor = schedule.floor_at(schedules, time_zone or "UTC", context.current_time) if schedules else None
    maximum = context.capacity_adjusted_max_replicas
    load = Load(
        time_s=context.current_time,
        running=context.current_num_replicas,
        target=context.target_num_replicas,
        needed=needed,
        has_requests=context.total_num_requests > 0 or heard.under_way > 0,
        minimum=max(context.capacity_adjusted_min_replicas, min(maximum, floor.minimum if floor else 0)),
        maximum=maximum,
    )
    memory = Memory(**state.get("memory", {}))
    if objective_s is None:
        wanted, memory = desired(load, memory, idle_s)
        reason, left = _reason(wanted, load, why, idle_s), {}
    else:
        terms = objective.Terms(objective_s, max_batch_size, load.minimum, maximum, idle_s)
        decision, kept = objective.decide(
            _seen(context, heard, told, load, why, target_ongoing_requests),
            terms,
            state.get("objective") or objective.Memory(),
        )
        wanted, reason, left = decision.wanted, decision.reason, {"objective": kept}
        memory = Memory(wanted, None, memory.has_run or load.running > 0)
    if floor is not None and wanted == floor.minimum > context.capacity_adjusted_min_replicas:
        reason = f"by schedule {floor.text!r} ({time_zone})"
    ask = Ask(context.app_name, bundle, label_selector, floor=load.minimum, wanted=wanted)
    granted = claims.granted(
        ask,
        serve_scaling_ray260.replicas(context.deployment_id, bundle),
        meanwhile=max(load.target, load.running),
        look=serve_scaling_ray260.looker(context.deployment_id, bundle),
    )
    runs = allowed(wanted, granted, load, memory)
    scaling_reasons.say(context.app_name, state.get("said", load.target), wanted, runs, reason)
    return runs, {"memory": asdict(memory), "said": wanted, **left}


def _by_requests(context: Any, heard: signals.Signals, target: float) -> tuple[float, str]:
    """Replicas for the requests under way, and those in words: Serve's own figure, or the replicas' own."""
    from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

    by_serve, _ = replica_queue_length_autoscaling_policy(context)
    # What comes past Serve only the replicas know of.
    under_way = max(context.total_num_requests, context.total_queued_requests + heard.under_way)
    needed = max(by_serve, under_way / target)
    return needed, f"{under_way:.3g} requests are under way, and a replica is to have {target:g}"


def _seen(  # noqa: PLR0917
    context: Any,
    heard: signals.Signals,
    told: signals.Told,
    load: Load,
    why: str,
    target_ongoing_requests: float,
) -> objective.Seen:
    queued = max(0.0, context.total_queued_requests - told.texts)
    texts = heard.texts + told.texts
    return objective.Seen(
        time_s=load.time_s,
        running=load.running,
        target=load.target,
        came=heard.came,
        done=heard.done,
        told=told.arrived,
        per_request=heard.per_request,
        backlog=heard.waiting + heard.per_request * queued,
        line=heard.line,
        p95_s=heard.p95_s,
        waited_s=heard.waited_s,
        is_asked=load.has_requests,
        besides=objective.Need(
            texts / target_ongoing_requests, f"{texts:.3g} texts are being made, or wait for that"
        ),
        otherwise=objective.Need(load.needed, why),
    )


def _reason(wanted: int, load: Load, why: str, idle_s: float) -> str:
    if wanted > load.target:
        return why if wanted > load.minimum else f"min_replicas is {load.minimum}"
    if wanted == load.target:
        return "what was not granted is not needed any more"
    return f"more were not needed for {idle_s:g} s"
