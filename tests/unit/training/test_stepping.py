"""A step is taken or skipped; with a gradient scaler and without one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagleray.errors import TrainingError
from eagleray.training.stepping import Buffers, skip_note, take_step


def parts(*, scale: float | None = None, clip_norm: float | None = None, kind: str = "none") -> Any:
    """As much of `Parts` as a step needs: one matrix under SGD at a rate of 1."""
    module = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    return SimpleNamespace(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        hook=SimpleNamespace(choice=lambda: None, compressor=SimpleNamespace(name=kind)),
        scaler=torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None),
        spec=SimpleNamespace(
            training=SimpleNamespace(clip_norm=clip_norm),
            compression=SimpleNamespace(max_skipped_steps=3),
            optimizer=SimpleNamespace(lr=1.0),
        ),
    )


def step(found: Any, value: float, number: int, skipped: int) -> int:
    """One step with a gradient of `value` in each element."""
    scale = found.scaler.get_scale() if found.scaler.is_enabled() else 1.0
    if found.scaler.is_enabled():
        found.scaler.scale(torch.ones(()))  # makes its state
    found.module.weight.grad = torch.full((1, 2), value * scale)
    return take_step(found, number, skipped)


def test_finite_steps_are_taken_others_skipped_and_counted():
    found, skipped, counts = parts(), 0, []
    for number, value in enumerate((1.0, math.nan, math.inf, 1.0, -math.inf), start=1):
        skipped = step(found, value, number, skipped)
        counts.append(skipped)
    assert counts == [0, 1, 2, 0, 1]
    assert torch.equal(found.module.weight, torch.full((1, 2), -2.0))
    assert skip_note(found, 5, 1) == (
        "step 5: the gradient of weight is not finite on some rank; all skip the step (1 in a row, the run "
        "ends at 3)"
    )


def test_the_last_of_too_many_raises_with_the_parameters_name():
    found = parts()
    with pytest.raises(
        TrainingError, match=r"^step 7: the gradient of weight is not finite.* 2 steps before"
    ):
        step(found, math.nan, 7, skipped=2)


def test_fp16_on_the_wire_is_named_where_it_may_be_the_cause():
    found = parts(kind="fp16")
    with pytest.raises(TrainingError, match=r"fp16 ends at 65504: take bf16.* lower optimizer\.lr"):
        step(found, math.inf, 7, skipped=2)
    found.hook.choice = lambda: SimpleNamespace(kind="bf16")
    with pytest.raises(TrainingError) as caught:
        step(found, math.inf, 7, skipped=2)
    assert "65504" not in str(caught.value)


def test_a_norm_that_overflows_is_skipped_too():
    found = parts()
    found.module.weight.grad = torch.full((1, 2), 3e38)
    assert take_step(found, 1, 0) == 1
    assert not found.module.weight.any()
    assert "(the norm overflowed)" in skip_note(found, 1, 1)


def test_a_scaler_looks_for_its_scale_as_long_as_that_takes_but_not_below_one():
    found, skipped = parts(scale=2.0**5), 0
    for number in range(1, 7):
        skipped = step(found, math.inf, number, skipped)
    assert skipped == 6
    assert found.scaler.get_scale() == 0.5
    with pytest.raises(TrainingError, match="step 7"):
        step(found, math.inf, 7, skipped)
    assert not found.module.weight.any()


def test_a_scaler_goes_on_where_the_scale_fits():
    found = parts(scale=8.0, clip_norm=1.0)
    assert step(found, math.inf, 1, 0) == 1
    assert step(found, 30.0, 2, 1) == 0
    assert found.scaler.get_scale() == 4.0
    torch.testing.assert_close(found.module.weight.norm(), torch.tensor(1.0))


def test_buffers_are_as_before_a_step_that_was_skipped():
    module = torch.nn.BatchNorm1d(3)
    mask = torch.zeros(2)
    module.register_buffer("mask", mask, persistent=False)
    buffers = Buffers(module)
    module(torch.randn(8, 3))
    buffers.keep()
    before = {name: buffer.clone() for name, buffer in module.state_dict().items()}
    module(torch.full((8, 3), math.nan))
    mask.fill_(5)
    assert module.state_dict()["running_mean"].isnan().all()
    buffers.restore()
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.state_dict().items())
    assert torch.equal(mask, torch.full((2,), 5.0)), "what is not saved is not kept"
