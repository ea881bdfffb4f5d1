"""Which compressor to take. Pure: tables of seconds in, a decision out.

The rule: of the candidates within NEAR of the fastest the one that loses least; but nothing that is less than
GAIN faster than no compression; and no change for less than HYSTERESIS.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Fidelity = Literal["exact", "high", "medium", "low"]

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
"""In the order of what they lose. bf16 before fp16, whose range a large gradient leaves."""
_LAST = {"exact": "none", "high": "int8_ring", "medium": "onebit_adam", "low": "randomk"}
_ADAM_PAIRS = ("fourbit_adam", "onebit_adam")
_WARMING = ("topk", *_ADAM_PAIRS)
"""What they send at first is not what they send later: a few steps say nothing."""
_SPARSE = ("topk", "randomk")
"""Not for Adam and its like, which divide by the root of a variance that few elements reach then."""

NEAR, GAIN, HYSTERESIS, DRIFT = 0.03, 0.05, 0.10, 0.10
CLOSE_ENOUGH = 1.5
"""Only what is predicted to take at most so many times the chosen one's step is tried against it."""
LONG_S, TRIAL_S = 1.0, 2.5
"""A step that is not worth trying twice; about what a trial may take."""
_BLOCK_S, _MAX_BLOCK, _MAX_ROUNDS = 0.1, 8, 5


def allowed(fidelity: Fidelity, optimizer: str | None, registered: Collection[str]) -> tuple[str, ...]:
    """The candidates, least lossy first.

    Args:
        fidelity: how much may be lost.
        optimizer: its class in lower case; None: not known, and treated like sgd.
        registered: the kinds that there are.
    """
    up_to = LEAST_LOSSY.index(_LAST[fidelity]) + 1
    barred = {kind for kind in _ADAM_PAIRS if kind.replace("_", "") != optimizer}
    if optimizer not in (None, "sgd"):
        barred.update(_SPARSE)
    return tuple(kind for kind in LEAST_LOSSY[:up_to] if kind in registered and kind not in barred)


def choose(seconds: Mapping[str, float], current: str | None = None) -> str:
    """The kind to take, by seconds per step of each candidate (`none` among them).

    Args:
        seconds: by kind.
        current: what is in use, which stays unless the other is more than HYSTERESIS faster, or it does not
            pay.
    """
    fastest = min(seconds.values())
    near = [kind for kind, value in seconds.items() if value <= (1 + NEAR) * fastest]
    picked = min(near, key=LEAST_LOSSY.index)
    if "none" in seconds and fastest > (1 - GAIN) * seconds["none"]:
        picked = "none"
    if current is not None and current in seconds and picked != current:
        pays = current == "none" or seconds[current] < seconds["none"]
        if pays and seconds[picked] > (1 - HYSTERESIS) * seconds[current]:
            return current
    return picked


def contenders(predicted: Mapping[str, float], picked: str) -> tuple[str, ...]:
    """Who is tried: the picked one, and of the fastest other and none those that may be faster after all."""
    if picked in _WARMING:
        return (picked,)
    rivals = [kind for kind in predicted if kind not in (picked, "none", *_WARMING)]
    others = sorted(rivals, key=predicted.__getitem__)
    # A long step is not spent on what is near anyway (then the less lossy is right), nor on what is far.
    limit = CLOSE_ENOUGH if predicted[picked] < LONG_S else 1 + 2 * HYSTERESIS
    tried = [kind for kind in (*others[:1], "none") if kind in predicted and kind != picked]
    return (picked, *(kind for kind in tried if predicted[kind] <= limit * predicted[picked]))


@dataclass(frozen=True)
class Turn:
    """One step of a trial."""

    kind: str
    is_counted: bool
    """Not the first after a change: it makes buffers."""


def schedule(tried: Sequence[str], step_s: float) -> tuple[Turn, ...]:
    """A trial: interleaved blocks, each round in the other direction; nothing where there is only one."""
    if len(tried) < 2:
        return ()
    block = min(max(1, round(_BLOCK_S / max(step_s, 1e-6))), _MAX_BLOCK)
    round_s = len(tried) * (block + 1) * step_s
    rounds = min(max(2 if step_s < LONG_S else 1, math.floor(TRIAL_S / max(round_s, 1e-6))), _MAX_ROUNDS)
    turns = []
    for number in range(rounds):
        for kind in tried if number % 2 == 0 else reversed(tried):
            was_other = not turns or turns[-1].kind != kind
            turns += [Turn(kind, False)] * was_other + [Turn(kind, True)] * block
    return tuple(turns)


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
