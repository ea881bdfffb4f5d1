"""A step that a loss cuts off; without ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.errors import PeerLost
from eagleray.specs import TrainSpec, load
from eagleray.training import loop
from eagleray.training.life import Held, Life
from eagleray.training.progress import Progress
from eagleray.training.station import Station
from eagleray.training.telemetry import Buffer
from unit.processes import ROOT


def test_a_step_that_breaks_is_none_after_which_all_owe_the_same(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load(TrainSpec, ROOT / "examples/train/digits.toml", [])
    life = Life(spec, str(tmp_path), Buffer(), Station())
    life.is_even, life.progress = True, Progress(step=20)  # all have stopped after step 20

    def backward(*_: Any) -> None:
        assert not Held(*life._held()).is_even, "its buckets may be encoded already"
        raise PeerLost("rank 1 is gone")

    for name in ("set_learning_rate", "seed_dropout"):
        monkeypatch.setattr(loop, name, lambda *_: None)
    monkeypatch.setattr(loop, "backward", backward)
    optimizer = SimpleNamespace(zero_grad=lambda **_: None)
    parts: Any = SimpleNamespace(spec=spec, optimizer=optimizer, total_steps=100)
    buffers: Any = SimpleNamespace(keep=lambda: None, restore=lambda: None)
    unused: Any = None
    with pytest.raises(PeerLost):
        loop.take(parts, life, unused, unused, 0, meter=unused, buffers=buffers)
    assert life.station.news(0).step == 21
