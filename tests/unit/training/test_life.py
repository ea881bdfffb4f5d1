"""What a rank says when it stops for the driver; without other ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eagleray.specs import TrainSpec, load
from eagleray.training.life import Life, Yielded
from eagleray.training.progress import Progress
from eagleray.training.station import Formation, Station
from eagleray.training.telemetry import Buffer
from unit.processes import ROOT


@pytest.mark.parametrize(
    ("rank", "saved_step", "said"), [(0, 20, []), (0, 10, [20]), (0, None, [20]), (1, None, [])]
)
def test_rank_0_says_where_what_the_ranks_stopped_at_is_not_saved(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, rank: int, saved_step: int | None, said: list[int]
) -> None:
    sink = Buffer()
    life = Life(load(TrainSpec, ROOT / "examples/train/digits.toml", []), str(tmp_path), sink, Station())
    parts: Any = SimpleNamespace(hook=SimpleNamespace(even_out=lambda: None))
    life.parts, life.formation = parts, Formation(2, rank, 2, "", 0)
    life.progress, life.committed_step = Progress(step=20), 20
    written = None if saved_step is None else SimpleNamespace(step=saved_step)
    monkeypatch.setattr(life.committer, "wait", lambda: written)
    with pytest.raises(Yielded):
        life.yield_to_driver()
    assert [record["step"] for record in sink.drain() if record["kind"] == "unsaved"] == said
