"""Which compressor to take. Pure: tables of seconds in, a decision out.

The rule: of the candidates within NEAR of the fastest the one that loses least; but nothing that is less than
GAIN faster than no compression; and no change for less than HYSTERESIS.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from eagleray.specs.compression import ADAM_PAIRS, Fidelity

LEAST_LOSSY = (
    "none",
    "bf16",
    "fp16",
    "int8",
    "int8_ring",
    "int4",
    "fourbit_adam",
    "onebit_adam",
    "powersgd",
    "topk",
    "randomk",
)
"""In the order of what they lose; what is not here is no candidate. bf16 before fp16, whose
range a large gradient leaves."""
_LAST = {"exact": "none", "high": "int8_ring", "medium": "onebit_adam", "low": "randomk"}
_UNTRIED = ("topk", *ADAM_PAIRS)
"""A few steps say nothing: topk sends more at first; and Adam's variance has to stay for good."""
_SPARSE = ("topk", "randomk")
"""Not for Adam and its like, which divide by the root of a variance that few elements reach then."""
_RING_RANKS = {"exact": 0, "high": 8, "medium": 16, "low": 16}
"""Up to how many ranks int8_ring loses about what the fidelity stands for: of the mean of random gradients it
loses 4 % on 4 ranks, 9 % on 16, 15 % on 32, and all of it on 64."""

NEAR, GAIN, HYSTERESIS, DRIFT = 0.03, 0.05, 0.10, 0.10
CLOSE_ENOUGH = 1.5
"""Only what is predicted to take at most so many times the chosen one's step is tried against it."""
LONG_S, TRIAL_S = 1.0, 1.2
"""A step that is not worth trying twice; about what a trial takes at least."""
_BLOCK_S, _MAX_BLOCK, _MAX_ROUNDS = 0.1, 8, 5


def allowed(
    fidelity: Fidelity, optimizer: str | None, registered: Collection[str], world_size: int
) -> tuple[str, ...]:
    """The candidates, least lossy first.

    Args:
        fidelity: how much may be lost.
        optimizer: its class in lower case; None: not known, and treated like sgd.
        registered: the kinds that there are.
        world_size: n.
    """
    up_to = LEAST_LOSSY.index(_LAST[fidelity]) + 1
    barred = set() if optimizer == "momentumadam" else {*ADAM_PAIRS}
    if optimizer not in (None, "sgd"):
        barred.update(_SPARSE)
    if world_size > _RING_RANKS[fidelity]:
        barred.add("int8_ring")
    return tuple(kind for kind in LEAST_LOSSY[:up_to] if kind in registered and kind not in barred)


def choose(seconds: Mapping[str, float], current: str | None = None) -> str:
    """The kind to take, by seconds per step of each candidate (`none` among them).

    Args:
        seconds: by kind.
        current: what is in use, which stays unless the other is more than HYSTERESIS faster, or it does not
            pay.
    """
    fastest, picked = min(seconds.values()), _least_lossy_near(seconds)
    if "none" in seconds and fastest > (1 - GAIN) * seconds["none"]:
        picked = "none"
    if current is not None and current in seconds and picked != current:
        pays = current == "none" or seconds[current] < seconds["none"]
        if pays and seconds[picked] > (1 - HYSTERESIS) * seconds[current]:
            return current
    return picked


def _least_lossy_near(seconds: Mapping[str, float]) -> str:
    """Of those within NEAR of the fastest."""
    fastest = min(seconds.values())
    return min((k for k, value in seconds.items() if value <= (1 + NEAR) * fastest), key=LEAST_LOSSY.index)


def contenders(predicted: Mapping[str, float], picked: str, current: str | None = None) -> tuple[str, ...]:
    """Who is tried: the picked one, and, if they may be faster after all, the best of the others and none.

    What is in use (`current`) is, whatever is predicted.
    """
    if picked in _UNTRIED:
        return (picked,)
    is_long = predicted[picked] >= LONG_S
    limit = CLOSE_ENOUGH * predicted[picked]
    rivals = {
        kind: value
        for kind, value in predicted.items()
        if value <= limit
        and kind not in (picked, *_UNTRIED)
        # a long step is not spent where only something lossier could come of it
        and not (is_long and LEAST_LOSSY.index(kind) > LEAST_LOSSY.index(picked))
    }
    others = {kind: value for kind, value in rivals.items() if kind != "none"}
    best = [_least_lossy_near(others)] if others else []
    in_use = [] if current is None or current in _UNTRIED else [current]
    return tuple(dict.fromkeys([picked, *best, *(["none"] if "none" in rivals else []), *in_use]))


def _block(step_s: float) -> int:
    """Steps in a row of one kind that count."""
    return min(max(1, round(_BLOCK_S / max(step_s, 1e-6))), _MAX_BLOCK)


@dataclass(frozen=True)
class Turn:
    """One step of a trial."""

    kind: str
    is_counted: bool
    """Not the first after a change: it makes buffers."""


def rounds_of(tried: Sequence[str], step_s: float) -> tuple[int, int]:
    """How many rounds a trial has at least, and at most; in between it ends when two in a row agree."""
    if len(tried) < 2:
        return 0, 0
    if step_s >= LONG_S:
        return 1, 1
    round_s = len(tried) * (_block(step_s) + 1) * step_s
    least = min(max(2, math.floor(TRIAL_S / max(round_s, 1e-6))), _MAX_ROUNDS)
    return least, 2 * least


def schedule(tried: Sequence[str], step_s: float, number: int, before: str | None) -> tuple[Turn, ...]:
    """A trial's round: a block of steps of each, in one direction and then the other.

    Args:
        tried: the kinds.
        step_s: about what a step takes.
        number: of the round.
        before: the kind of the step before.
    """
    turns: list[Turn] = []
    for kind in tried if number % 2 == 0 else reversed(tried):
        turns += [Turn(kind, False)] * (kind != before) + [Turn(kind, True)] * _block(step_s)
        before = kind
    return tuple(turns)


def typical(seconds: Sequence[float]) -> float:
    """The mean of the faster half: what else a machine does only ever adds to a step."""
    return statistics.mean(sorted(seconds)[: (len(seconds) + 1) // 2])


def has_drifted(measured_s: float, base_s: float) -> bool:
    """Whether a step takes more or less than it did, by more than DRIFT."""
    return abs(measured_s / base_s - 1) > DRIFT


def explain(
    picked: str,
    predicted: Mapping[str, float],
    measured: Mapping[str, float],
    link: str,
    world_size: int,
) -> str:
    """What was chosen, why, and the numbers, in one sentence or two."""
    others = {kind: value for kind, value in predicted.items() if kind != picked}
    basis = measured if len(measured) > 1 and picked in measured else predicted
    said = [f"auto chose {picked}: {_why(picked, basis, predicted)}"]
    if picked in predicted:
        listed = ", ".join(f"{kind} {_ms(value)}" for kind, value in others.items())
        said.append(
            f"predicted {_ms(predicted[picked])} a step{f' ({listed})' if listed else ''} "
            f"on {world_size} ranks over {link}"
        )
    if measured:
        said.append("measured " + ", ".join(f"{kind} {_ms(value)}" for kind, value in measured.items()))
    return "; ".join(said)


def _why(picked: str, seconds: Mapping[str, float], predicted: Mapping[str, float]) -> str:
    if len(seconds) < 2:
        return "nothing else is allowed" if picked == "none" else "kept"
    fastest = min(seconds, key=seconds.__getitem__)
    if picked == "none":
        best = min(value for kind, value in seconds.items() if kind != "none")
        return f"compression does not pay (the best would take {best / seconds['none']:.2f} of its step)"
    both = seconds if "none" in seconds else predicted
    gain = f"{both['none'] / both[picked]:.1f} times as fast as none, "
    if picked == fastest:
        return f"{gain}the fastest allowed"
    return f"{gain}the least lossy within {seconds[picked] / seconds[fastest] - 1:.0%} of {fastest}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
