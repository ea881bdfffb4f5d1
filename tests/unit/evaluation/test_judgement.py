"""The judgement as a table: evidence, verdict, and the words that must be in it."""

from __future__ import annotations

import math

import pytest

from eagleray.evaluation import Evidence, Loss, judge, validation_curve

BASELINE = 2.0


def loss(mean, error=0.01, baseline=BASELINE):
    return Loss(mean, error, baseline)


FLAT = tuple((step, 0.2) for step in range(10, 100, 10))
RISING = tuple((step, 0.2 + abs(step - 40) / 200) for step in range(10, 100, 10))
FALLING = tuple((step, 2.0 - step / 60) for step in range(10, 100, 10))

CASES = {
    "as good on both": (
        Evidence(loss(0.10), loss(0.12)),
        "good fit",
        ["0.1 on data", "0.12 ± 0.01 on held-out"],
    ),
    "a flat curve": (Evidence(loss(0.10), loss(0.12), FLAT), "good fit", []),
    "held-out is better": (Evidence(loss(0.30), loss(0.20)), "good fit", []),
    "somewhat worse": (Evidence(loss(0.10), loss(0.35)), "over-fitting", ["somewhat worse", "regularise"]),
    "much worse": (Evidence(loss(0.01), loss(1.20)), "over-fitting", ["much worse"]),
    "by heart": (
        Evidence(loss(0.01), loss(2.50)),
        "over-fitting",
        ["by heart", "a constant guess is better"],
    ),
    "few samples": (Evidence(loss(0.10), loss(0.35, 0.2)), "good fit", ["no larger than chance"]),
    "past its best": (
        Evidence(loss(0.10), loss(0.15), RISING),
        "over-fitting",
        ["past its best point", "near step 40", "lowest at step 40"],
    ),
    "worse and past its best": (
        Evidence(loss(0.10), loss(0.50), RISING),
        "over-fitting",
        ["somewhat worse", "early_stopping"],
    ),
    "the curve rose, but not more than training's": (
        Evidence(loss(0.20), loss(0.19), RISING),
        "good fit",
        [],
    ),
    "ended early": (
        Evidence(loss(0.50), loss(0.52), FALLING),
        "still learning",
        ["Train longer", "still fell"],
    ),
    "learned little": (Evidence(loss(1.90), loss(1.95)), "under-fitting", ["only 5 %", "more capacity"]),
    "learned nothing": (Evidence(loss(2.00), loss(2.10)), "under-fitting", ["learned nothing"]),
    "little, and still falling": (
        Evidence(loss(1.90), loss(1.95), FALLING),
        "under-fitting",
        ["Train longer first"],
    ),
    "a short curve says nothing": (Evidence(loss(0.5), loss(0.52), FALLING[:3]), "good fit", []),
    "no held-out data": (Evidence(loss(0.1), None), "unknown", ["not measured on held-out data"]),
    "no training data": (
        Evidence(None, loss(0.1)),
        "unknown",
        ["not measured on data that it was trained on"],
    ),
    "nothing to learn": (
        Evidence(loss(0.0, 0.0, 0.0), loss(0.0, 0.0, 0.0)),
        "unknown",
        ["All targets are equal"],
    ),
    "one class in the held-out part": (Evidence(loss(0.1), loss(0.12, 0.01, 0.0)), "good fit", []),
}


@pytest.mark.parametrize("name", CASES)
def test_a_judgement(name):
    evidence, verdict, words = CASES[name]
    found = judge(evidence)
    said = " ".join([found.headline, *found.reasons, *found.advice])
    assert found.verdict == verdict, said
    for word in words:
        assert word in said
    assert all(sentence.endswith(".") for sentence in (found.headline, *found.reasons, *found.advice))
    assert (found.advice == ()) == (verdict == "good fit")


def test_the_same_evidence_in_other_units_is_judged_alike():
    """Cross-entropy in nats or squared errors in cents: only shares of the guess's loss count."""
    for evidence, verdict, _ in CASES.values():
        scaled = Evidence(
            *(
                None
                if part is None
                else Loss(part.mean * 1e6, part.standard_error * 1e6, part.baseline * 1e6)
                for part in (evidence.train, evidence.held_out)
            ),
            tuple((step, value * 1e6) for step, value in evidence.validation_curve),
        )
        assert judge(scaled).verdict == verdict


def test_the_curve_of_a_history():
    history = [
        {"step": 20.0, "loss": 0.5},
        {"step": 10.0, "loss": 1.0},
        {"step": 20.0, "validation_loss": 0.7, "validation_accuracy": 0.9},
        {"step": 20.0, "loss": 0.4},
        {"step": 10.0, "validation_loss": 0.9},
        {"step": 20.0, "validation_loss": 0.6},
        {"step": 30.0, "validation_loss": math.nan},
    ]
    assert validation_curve(history) == ((10, 0.9), (20, 0.6))
    assert validation_curve([]) == ()
