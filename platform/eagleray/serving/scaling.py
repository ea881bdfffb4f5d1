"""How many replicas a service runs: min(what its requests need, what the ledger grants).

Called in Serve's controller, ten times a second for each service. What is remembered between two calls Serve
keeps (`memory`); what the ledger granted is read from memory (`service_claims`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eagleray.serving.service_claims import Ask, of_this_process

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
    context: Any, *, bundle: Mapping[str, float], label_selector: Mapping[str, str], idle_s: float
) -> tuple[int, dict[str, Any]]:
    """What `ServiceScaling` returns; tells the ledger what is wanted, by the way.

    Args:
        context: Serve's AutoscalingContext.
        bundle: What a replica takes of its node.
        label_selector: Of the nodes on which it may run.
        idle_s: How long a replica more than needed stays.
    """
    from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

    from eagleray.serving import serve_scaling_ray260

    claims = of_this_process()
    needed, _ = replica_queue_length_autoscaling_policy(context)
    load = Load(
        time_s=context.current_time,
        running=context.current_num_replicas,
        target=context.target_num_replicas,
        needed=needed,
        has_requests=context.total_num_requests > 0,
        minimum=context.capacity_adjusted_min_replicas,
        maximum=context.capacity_adjusted_max_replicas,
    )
    wanted, memory = desired(load, Memory(**context.policy_state.get("memory", {})), idle_s)
    ask = Ask(context.app_name, bundle, label_selector, floor=load.minimum, wanted=wanted)
    granted = claims.granted(
        ask,
        serve_scaling_ray260.replicas(context.deployment_id, bundle),
        meanwhile=max(load.target, load.running),
        look=serve_scaling_ray260.looker(context.deployment_id, bundle),
    )
    return allowed(wanted, granted, load, memory), {"memory": asdict(memory)}
