"""How many replicas keep a service's objective: from what comes, what waits, and what a forward pass takes.

    mu       = b / (fixed + per sample x b)           samples per second of one replica, in batches of b
    for all that comes   rate / (LOAD x mu)           b: the largest batch of which two keep the objective
    for what waits       (rate + backlog / DRAIN_S) / mu

More at once, by the panic window; fewer only if they would have sufficed for all of the stable window, with
something to spare. No clock and no cluster in here: `decide` is called with what is seen, and its own memory.

Source: Knative's autoscaler for the two windows, https://knative.dev/docs/serving/autoscaling/kpa-specific/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from eagleray.serving.rates import Count, Peaks, Rates
from eagleray.serving.replica.fit import Line

PANIC_S, STABLE_S = 6.0, 60.0
PANIC_RATIO = 2.0
"""So many times what runs is needed: nothing is taken away for STABLE_S."""
LOAD, LOAD_TO_SHRINK = 0.75, 0.6
"""Share of the time in which a replica computes; with fewer of them less, else noise would sway them."""
DRAIN_S = 10.0
LOOK_S = 3.0
"""What is so for two looks of so many seconds is no chance."""
CAUTION = 0.8
"""Of what each replica had when the objective was missed, it gets at most so much from then on."""
LEAST = 0.05
"""Of what the passes say: what does less has little to do, or hangs; that is no measure of it."""
FORGIVEN_S = 3600.0
"""What was found out is found out anew after so long."""


@dataclass(frozen=True)
class Terms:
    """What is wanted of a service."""

    objective_s: float
    """95 of 100 requests are to take no longer at the replica."""
    max_batch_size: int
    minimum: int
    maximum: int
    idle_s: float
    """Without a request for so long the last replica goes, where the minimum is 0."""
    minimum_reason: str = "min_replicas"


@dataclass(frozen=True)
class Need:
    """What one cause asks for."""

    replicas: float
    reason: str

    @property
    def whole(self) -> int:
        """Rounded up; a hundredth too much is none."""
        return math.ceil(self.replicas - 0.01)


@dataclass(frozen=True)
class Seen:
    """A service at one moment."""

    time_s: float
    running: int
    """Replicas that answer."""
    target: int
    """Replicas that are granted and seen to."""
    came: Mapping[str, Count] = field(default_factory=dict)
    """Samples, by replica."""
    done: Mapping[str, Count] = field(default_factory=dict)
    """Samples that were computed, by replica."""
    told: Mapping[str, Count] = field(default_factory=dict)
    """Requests by gateway: replicas never see what waits there, or was turned away for want of room."""
    per_request: float = 1.0
    """Samples."""
    backlog: float = 0.0
    """Samples that wait, in replicas and before them."""
    line: Line | None = None
    """What a forward pass takes; None where none has run."""
    p95_s: float | None = None
    """Of the requests answered lately."""
    waited_s: float = 0.0
    """What of that went by before the forward pass."""
    is_asked: bool = False
    """A request is under way."""
    besides: Need = Need(0.0, "")
    """What is needed in any case, for what forward passes do not show."""
    otherwise: Need = Need(0.0, "")
    """What is needed where replicas say nothing of their passes."""


@dataclass(frozen=True)
class Limits:
    """What a replica was found out to take, in samples per second: a pass is not all that a request costs."""

    full: float = math.inf
    """What it computed while more waited than it could do."""
    slow: float = math.inf
    """What came to it while the objective was missed."""
    since_s: float = 0.0
    """When one of them last changed."""


@dataclass(frozen=True)
class Memory:
    """What one decision leaves to the next."""

    came: Rates = field(default_factory=Rates)
    told: Rates = field(default_factory=Rates)
    done: Rates = field(default_factory=Rates)
    line: Line | None = None
    recent: Peaks = field(default_factory=lambda: Peaks(PANIC_S))
    """Replicas that were needed."""
    stable: Peaks = field(default_factory=lambda: Peaks(STABLE_S))
    """Replicas that would have been needed with something to spare."""
    asked_s: float | None = None
    """When the last request was seen."""
    panic_until_s: float = 0.0
    full_since_s: float | None = None
    """Since when so many replicas have had more to do than they could."""
    slow_since_s: float | None = None
    """Since when the objective has been missed, though nothing has piled up."""
    num_running: int = 0
    silent_since_s: float | None = None
    """Since when replicas have run, and none has said anything of its passes."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Decision:
    """How many replicas, and why, in words."""

    wanted: int
    reason: str


def batch_within(line: Line, objective_s: float, max_batch_size: int) -> int:
    """The largest batch of which two in a row keep the objective: who just missed one waits for it."""
    left_s = objective_s / 2 - line.fixed_s
    if left_s <= line.per_sample_s:
        return 1
    return int(min(max_batch_size, left_s / max(line.per_sample_s, 1e-9)))


def decide(seen: Seen, terms: Terms, memory: Memory) -> tuple[Decision, Memory]:
    """The number of replicas that the service should have, and the memory for the next call."""
    memory = _learned(seen, terms, _with_rates(seen, memory))
    need = _need(seen, terms, memory, LOAD, 1.0)
    spare = _need(seen, terms, memory, LOAD_TO_SHRINK, CAUTION)
    span_s = max(STABLE_S, terms.idle_s)
    stable = memory.stable if memory.stable.span_s == span_s else Peaks(span_s)
    is_panic = 0 < PANIC_RATIO * seen.running <= need.whole
    memory = replace(
        memory,
        recent=memory.recent.after(seen.time_s, need.whole),
        stable=stable.after(seen.time_s, max(need.whole, spare.whole)),
        panic_until_s=seen.time_s + STABLE_S if is_panic else memory.panic_until_s,
    )
    return _decision(seen, terms, memory, need), memory


def _with_rates(seen: Seen, memory: Memory) -> Memory:
    came, told = memory.came.after(seen.time_s, seen.came), memory.told.after(seen.time_s, seen.told)
    is_asked = seen.is_asked or came.is_moving or told.is_moving or memory.asked_s is None
    line = seen.line or memory.line
    return replace(
        memory,
        came=came,
        told=told,
        done=memory.done.after(seen.time_s, seen.done),
        line=line,
        silent_since_s=_since(memory.silent_since_s, line is None and seen.running > 0, seen.time_s),
        asked_s=seen.time_s if is_asked else memory.asked_s,
    )


def _need(seen: Seen, terms: Terms, memory: Memory, load: float, caution: float) -> Need:
    """The cause that asks for the most."""
    needs = [seen.besides, Need(float(seen.is_asked), "a request waits")]
    if memory.silent_since_s is not None and seen.time_s - memory.silent_since_s >= PANIC_S:
        needs.append(seen.otherwise)
    line, rate = memory.line, _rate(seen, memory)
    if line is not None:
        batch, mu = _capacity(line, terms, memory.limits)
        usable = min(load * mu, caution * memory.limits.slow)
        why = f"batches of {batch} within {_ms(terms.objective_s)}"
        if memory.limits.slow < load * mu:
            why = f"with more, requests took longer than {_ms(terms.objective_s)}"
        elif memory.limits.full <= mu:
            why = "it was busy with that"
        waiting = max(0.0, seen.backlog - batch * seen.running)
        needs += [
            Need(rate / usable, f"{rate:.4g} samples/s come, and a replica takes {usable:.4g}/s ({why})"),
            Need(
                (rate + waiting / DRAIN_S) / mu,
                f"{seen.backlog:.0f} samples wait, {rate:.4g}/s come, and a replica computes {mu:.4g}/s",
            ),
        ]
    if not seen.running and seen.target:
        needs.append(Need(seen.target, "none answers yet"))
    return max(needs, key=lambda need: need.replicas)


def _rate(seen: Seen, memory: Memory) -> float:
    """Samples per second that are asked for, by those who see more of them: gateways, or replicas."""
    return max(memory.came.most, seen.per_request * memory.told.most)


def _capacity(line: Line, terms: Terms, limits: Limits) -> tuple[int, float]:
    """The batch that keeps the objective, and the samples per second of a replica with it."""
    batch = batch_within(line, terms.objective_s, terms.max_batch_size)
    return batch, min(batch / max(line.seconds(batch), 1e-9), limits.full)


def _learned(seen: Seen, terms: Terms, memory: Memory) -> Memory:
    """What replicas take is found out while they have more than enough to do, or are too slow."""
    now_s, running = seen.time_s, seen.running
    if now_s - memory.limits.since_s > FORGIVEN_S:
        memory = replace(memory, limits=Limits())
    if not running or running != memory.num_running or running < seen.target or memory.line is None:
        return replace(memory, num_running=running, full_since_s=None, slow_since_s=None)
    batch, mu = _capacity(memory.line, terms, Limits())
    each_s, limits = memory.done.fast / running, memory.limits
    is_hanging = each_s < LEAST * mu
    is_full = seen.backlog > running * batch and not is_hanging
    is_slow = (
        not (is_full or is_hanging)
        and seen.p95_s is not None
        and seen.p95_s > terms.objective_s
        and seen.waited_s > terms.objective_s / 4  # else more replicas would answer no sooner
    )
    full_since_s = _since(memory.full_since_s, is_full, now_s)
    slow_since_s = _since(memory.slow_since_s, is_slow, now_s)
    if full_since_s is not None and now_s - full_since_s >= 2 * LOOK_S:
        limits, full_since_s = Limits(full=each_s, slow=limits.slow, since_s=now_s), now_s
    elif slow_since_s is not None and now_s - slow_since_s >= 2 * LOOK_S:
        slow = min(limits.slow, CAUTION * each_s)
        limits, slow_since_s = Limits(full=limits.full, slow=slow, since_s=now_s), now_s
    elif not is_full and not is_slow:
        least = min(each_s, memory.done.slow / running)
        limits = replace(limits, full=max(limits.full, least), slow=max(limits.slow, least))
    return replace(memory, full_since_s=full_since_s, slow_since_s=slow_since_s, limits=limits)


def _since(before_s: float | None, is_so: bool, now_s: float) -> float | None:
    if not is_so:
        return None
    return now_s if before_s is None else before_s


def _decision(seen: Seen, terms: Terms, memory: Memory, need: Need) -> Decision:
    now_s, target = seen.time_s, seen.target
    grown = max(need.whole, int(memory.recent.most))
    is_held = now_s < memory.panic_until_s or not memory.stable.is_whole(now_s)
    kept = target if is_held else min(target, int(memory.stable.most))
    assert memory.asked_s is not None
    is_idle = now_s - memory.asked_s >= terms.idle_s
    if is_idle and target <= 1 and not seen.is_asked:
        wanted, reason = 0, f"nothing was asked for {terms.idle_s:.0f} s"
    else:
        wanted = max(1, grown, kept) if target or grown else 0
        reason = need.reason if wanted > target else _fewer(seen, memory, wanted)
    if wanted < terms.minimum:
        return Decision(terms.minimum, terms.minimum_reason)
    if wanted > terms.maximum:
        return Decision(terms.maximum, f"{reason}; max_replicas is {terms.maximum}")
    return Decision(wanted, reason)


def _fewer(seen: Seen, memory: Memory, wanted: int) -> str:
    if wanted == seen.target:
        return "as before"
    rate, span_s = _rate(seen, memory), memory.stable.span_s
    return f"{wanted} would have sufficed for {span_s:.0f} s; {rate:.4g} samples/s come"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
