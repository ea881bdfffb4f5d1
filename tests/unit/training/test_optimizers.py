"""The learning rate by table, and early stopping by table."""

import pytest
import torch

from eagleray.compression.optimizer import MomentumAdam
from eagleray.specs.compression import CompressionSpec
from eagleray.specs.train import (
    AdamOptimizer,
    ConstantSchedule,
    CosineSchedule,
    EarlyStopping,
    StepSchedule,
)
from eagleray.training.optimizers import build_optimizer, learning_rate
from eagleray.training.progress import Progress


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (ConstantSchedule(kind="constant"), 1, 1.0),
        (ConstantSchedule(kind="constant", warmup_steps=4), 1, 0.25),
        (ConstantSchedule(kind="constant", warmup_steps=4), 4, 1.0),
        (ConstantSchedule(kind="constant", warmup_steps=4), 5, 1.0),
        (CosineSchedule(kind="cosine"), 1, 1.0),
        (CosineSchedule(kind="cosine"), 101, 0.0),
        (CosineSchedule(kind="cosine", final_fraction=0.1), 101, 0.1),
        (CosineSchedule(kind="cosine"), 51, 0.5),
        (StepSchedule(kind="step", every_steps=10, gamma=0.5), 10, 1.0),
        (StepSchedule(kind="step", every_steps=10, gamma=0.5), 11, 0.5),
        (StepSchedule(kind="step", every_steps=10, gamma=0.5), 21, 0.25),
    ],
)
def test_learning_rate(schedule, step, expected):
    assert learning_rate(1.0, schedule, step, total_steps=101) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize(
    "compression",
    [CompressionSpec(kind="fourbit_adam"), CompressionSpec(kind="auto", fidelity="medium")],
    ids=lambda spec: spec.kind,
)
def test_a_compression_that_sends_the_momentum_gets_its_optimizer(kind, compression):
    spec = AdamOptimizer(kind=kind, lr=0.1, betas=(0.8, 0.99), weight_decay=0.5)
    plain, paired = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    paired.load_state_dict(plain.state_dict())
    one = build_optimizer(spec, plain.parameters(), compression=CompressionSpec(kind="auto"))
    other = build_optimizer(spec, paired.parameters(), compression=compression)
    assert isinstance(other, MomentumAdam)
    assert not isinstance(one, MomentumAdam)
    for module, optimizer in ((plain, one), (paired, other)):
        module(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    assert torch.equal(plain.weight, paired.weight), "without a momentum it is torch's"


@pytest.mark.parametrize(
    ("metric", "values", "stops_at"),
    [
        ("validation_loss", [1.0, 0.9, 0.91, 0.92], 4),
        ("validation_loss", [1.0, 0.9, 0.95, 0.8, 0.9], None),
        ("validation_accuracy", [0.5, 0.6, 0.6, 0.59], 4),
        ("validation_accuracy", [0.5, 0.6, 0.7, 0.8], None),
    ],
)
def test_early_stopping(metric, values, stops_at):
    rule, progress, stopped = EarlyStopping(metric=metric, patience=2), Progress(), None
    for evaluation, value in enumerate(values, start=1):
        progress = progress.judged(rule, {metric: value})
        if progress.is_stopped_early:
            stopped = evaluation
            break
    assert stopped == stops_at
