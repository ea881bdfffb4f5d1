"""Over- and under-fitting said in words: evidence in, a decision value out, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eagleray.evaluation.metrics import Loss

Verdict = Literal["good fit", "over-fitting", "under-fitting", "still learning", "unknown"]
Curve = Sequence[tuple[int, float]]
"""(step, loss), in order of steps."""

# All shares are of the baseline: the loss of the best constant guess.
LEARNED_LITTLE = 0.2
"""A training loss that is not lower than the guess's by this share: under-fitting."""
GAP = 0.05
"""A held-out loss that is higher than the training loss by this share: over-fitting."""
_MUCH = 0.25
RISEN = 0.03
"""A validation loss that has risen from its lowest by this share."""
FALLING = 0.02
"""A validation loss that fell by this share over the last third of the evaluations."""
_MIN_CURVE = 4
_NUM_ERRORS = 2.0
"""Differences within so many standard errors say nothing."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a model; None and empty where it is not."""

    train: Loss | None
    """On samples that the model was trained on, without dropout and augmentation."""
    held_out: Loss | None
    validation_curve: Curve = ()
    """Of the run's history."""


@dataclass(frozen=True)
class Judgement:
    """What to think of the model, why, and what to try next."""

    verdict: Verdict
    headline: str
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
        return {
            "verdict": self.verdict,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "advice": list(self.advice),
        }


@dataclass(frozen=True)
class _Signs:
    """The evidence as shares of the baseline."""

    learned: float
    held_out_learned: float
    gap: float
    noise: float
    """So large a gap comes about by chance."""
    risen: float
    best_step: int | None
    """Of the lowest validation loss."""
    falling: float
    reasons: tuple[str, ...] = field(default=())

    @property
    def is_gap_real(self) -> bool:
        return self.gap >= GAP and self.gap > self.noise

    @property
    def has_risen(self) -> bool:
        return self.risen >= RISEN and self.gap > 0


def judge(evidence: Evidence) -> Judgement:
    """The judgement. A table of rules, from the plainest to the weakest; the first that holds decides."""
    train, held_out = evidence.train, evidence.held_out
    if train is None or held_out is None:
        return _unknown(evidence)
    baseline = train.baseline if train.baseline > 0 else held_out.baseline
    if not baseline > 0:
        return Judgement(
            "unknown",
            "All targets are equal, so there is nothing to learn and nothing to judge.",
            advice=("Judge on data whose targets differ.",),
        )
    signs = _signs(evidence, train, held_out, baseline)
    if signs.learned < LEARNED_LITTLE:
        return _under(signs)
    if signs.is_gap_real or signs.has_risen:
        return _over(signs)
    if signs.falling >= FALLING:
        return Judgement(
            "still learning",
            "The model was still getting better when its training ended.",
            signs.reasons,
            ("Train longer: go on from its weights with training.init_from, or raise steps or epochs.",),
        )
    return Judgement(
        "good fit",
        "The model does about as well on held-out data as on the data it was trained on.",
        signs.reasons,
    )


def validation_curve(history: Sequence[Mapping[str, float]]) -> Curve:
    """The validation loss of a run's history, in order of steps; only finite values."""
    points = {
        int(row["step"]): float(row["validation_loss"])
        for row in history
        if row.get("validation_loss") is not None and math.isfinite(row["validation_loss"])
    }  # a step that was redone after a loss counts as it was the last time
    return tuple(sorted(points.items()))


def _signs(evidence: Evidence, train: Loss, held_out: Loss, baseline: float) -> _Signs:
    noise = _NUM_ERRORS * math.hypot(train.standard_error, held_out.standard_error)
    curve = [(step, loss / baseline) for step, loss in evidence.validation_curve]
    risen, best_step, falling = 0.0, None, 0.0
    if len(curve) >= _MIN_CURVE:
        best_step, lowest = min(curve, key=lambda point: point[1])
        risen = curve[-1][1] - lowest
        before = min(loss for _, loss in curve[: -(-2 * len(curve) // 3)])
        falling = before - curve[-1][1]
    signs = _Signs(
        learned=1 - train.mean / baseline,
        held_out_learned=1 - held_out.mean / baseline,
        gap=(held_out.mean - train.mean) / baseline,
        noise=noise / baseline,
        risen=risen,
        best_step=best_step,
        falling=falling,
    )
    return _Signs(**{**vars(signs), "reasons": tuple(_reasons(signs, train, held_out, baseline))})


def _reasons(signs: _Signs, train: Loss, held_out: Loss, baseline: float) -> list[str]:
    reasons = [
        f"The loss is {_number(train.mean)} on data that the model was trained on and "
        f"{_number(held_out.mean)} ± {_number(held_out.standard_error)} on held-out data; "
        f"the best constant guess scores {_number(baseline)}."
    ]
    if signs.gap >= GAP and not signs.is_gap_real:
        reasons.append("The difference is no larger than chance makes it on so few samples.")
    if signs.risen >= RISEN:
        reasons.append(
            f"The validation loss was lowest at step {signs.best_step} and rose by "
            f"{100 * signs.risen:.0f} % of the guess's loss until the end."
        )
    elif signs.falling >= FALLING:
        reasons.append(
            f"Over the last third of its evaluations the validation loss still fell by "
            f"{100 * signs.falling:.0f} % of the guess's loss."
        )
    return reasons


def _under(signs: _Signs) -> Judgement:
    if signs.held_out_learned <= 0:
        headline = "The model has learned nothing: a constant guess would do as well."
    else:
        headline = (
            f"The model has learned little: even on the data it was trained on, its loss is only "
            f"{100 * signs.learned:.0f} % below that of a constant guess."
        )
    if signs.falling >= FALLING:
        advice = ("Train longer first: the loss was still falling.",)
    else:
        advice = (
            "Give the model more capacity (width, layers), or another learning rate.",
            "Take regularisation back: dropout, weight_decay, l1, augmentation.",
            "Look at the data: the inputs may not tell the target.",
        )
    return Judgement("under-fitting", headline, signs.reasons, advice)


def _over(signs: _Signs) -> Judgement:
    if signs.held_out_learned <= 0:
        headline = "The model knows its training data by heart: on held-out data a constant guess is better."
    elif signs.is_gap_real:
        degree = "much" if signs.gap >= _MUCH else "somewhat"
        headline = f"The model does {degree} worse on held-out data than on the data it was trained on."
    else:
        headline = "The model was trained past its best point."
    advice = [
        "Give it more data or augmentation, or regularise it: dropout, weight_decay, label smoothing.",
        "Or take a smaller model.",
    ]
    if signs.has_risen:
        advice.insert(0, f"Stop earlier, near step {signs.best_step}: training.early_stopping does it.")
    return Judgement("over-fitting", headline, signs.reasons, tuple(advice))


def _unknown(evidence: Evidence) -> Judgement:
    missing = "held-out data" if evidence.held_out is None else "data that it was trained on"
    return Judgement(
        "unknown",
        f"The model was not measured on {missing}, so over- and under-fitting cannot be told apart.",
        advice=(
            'Judge it on part = "test" of the data that it was trained on.'
            if evidence.held_out is None
            else "Judge it where its run's data can be read.",
        ),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
