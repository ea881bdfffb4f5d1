"""What a rank says when it stops for the driver, and what it leaves at the end; without other ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagleray import groups
from eagleray.compression import Stats
from eagleray.device import Place
from eagleray.errors import CheckpointError, PeerLost, TrainingError
from eagleray.packaging import CheckpointStore
from eagleray.specs import TrainSpec, load
from eagleray.training import life as life_module
from eagleray.training import loop, state
from eagleray.training.agreement import Agreement
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


@pytest.fixture
def ended(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Life:
    """A rank that is alone in formation 2, and holds the last step, 20, as committed."""
    monkeypatch.setattr(loop, "train", lambda parts, life: None)
    monkeypatch.setattr(life_module, "outcome", lambda parts, progress: {})
    life = Life(load(TrainSpec, ROOT / "examples/train/digits.toml", []), str(tmp_path), Buffer(), Station())
    module = torch.nn.Linear(2, 2)
    alone: Any = SimpleNamespace(rank=0, world_size=1)
    parts: Any = SimpleNamespace(
        rank=0,
        world_size=1,
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        dataset=SimpleNamespace(digest="d"),
        spec=life.spec,
        hook=SimpleNamespace(collect_state=dict, stats=Stats),
        agreement=Agreement(alone),
    )
    life.parts, life.formation = parts, Formation(2, 0, 1, "", 2, 1)
    life.committer.attempt = 2
    life.progress, life.settled_step, life.committed_step = Progress(step=20), 20, 20
    return life


def stored(life: Life) -> list[str]:
    return [name for name in CheckpointStore(life.store.folder.url).folder.list() if name[0] != "."]


def test_the_last_checkpoint_is_written_by_who_is_left_where_rank_0_was_lost_in_it(ended: Life) -> None:
    ended.train()
    assert stored(ended) == ["step-00000020.attempt-0002"]


def test_a_last_checkpoint_that_could_not_be_written_is_tried_again_after_a_loss(ended: Life) -> None:
    ended.committer._failed = (1, CheckpointError("the disk was full"))
    ended.train()
    assert stored(ended) == ["step-00000020.attempt-0002"]


def test_a_last_checkpoint_that_cannot_be_written_fails_the_run(
    ended: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(ended.store, "commit", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        ended.train()


def test_a_last_checkpoint_that_lies_in_the_storage_is_not_written_again(ended: Life) -> None:
    ended.samples.parent = (1, 20)  # as it was loaded, or heard of
    ended.train()
    assert stored(ended) == []


def test_ranks_that_have_read_different_checkpoints_look_again(
    ended: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []

    def same(what: str, value: str) -> None:
        compared.append((what, value))
        if len(compared) == 1:
            raise TrainingError("rank 1 has step 10 of attempt 1, the others have step 20 of attempt 1")

    parts: Any = SimpleNamespace(agreement=SimpleNamespace(same=same))
    ended.samples.parent = (1, 20)
    monkeypatch.setattr(state, "restore", lambda *_: Progress(step=20))
    with pytest.raises(PeerLost, match="rank 1 has step 10 of attempt 1"):  # which is no end of the run
        ended._restore(parts)
    ended._restore(parts)
    assert compared == [("the checkpoint to go on from", "step 20 of attempt 1")] * 2
    assert (ended.progress.step, ended.settled_step, ended.committed_step) == (20, 20, 20)


@pytest.mark.parametrize("is_even", [False, True])
def test_who_holds_what_is_in_no_checkpoint_stays_where_it_computes(
    ended: Life, monkeypatch: pytest.MonkeyPatch, is_even: bool
) -> None:
    shared = Place(device=torch.device("cpu"), backend="gloo", is_logical_gpu=True)
    own = Place(device=torch.device("cuda", 0), backend="nccl", is_logical_gpu=False)
    before: Any = SimpleNamespace(place=shared)
    monkeypatch.setattr(life_module.device, "pick", lambda _: own)
    monkeypatch.setattr(life_module, "agree_on_place", lambda picked, *_: picked)
    monkeypatch.setattr(life_module, "gather", lambda spec, place: SimpleNamespace(place=place))
    ended._materials, ended.holds_state, ended.is_even = before, True, is_even
    found = ended._at_a_place(ended.parts.agreement, ended.formation)  # type: ignore[union-attr, arg-type]
    assert (found.place, ended.holds_state) == ((own, False) if is_even else (shared, True))


def test_a_formation_may_change_the_state_when_the_last_commit_has_copied_it(
    ended: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Copied(Exception):
        pass

    def await_copies() -> None:
        raise Copied

    monkeypatch.setattr(ended.committer, "await_copies", await_copies)
    monkeypatch.setattr(groups, "new_group", lambda *_, **__: pytest.fail("the ranks connect already"))
    with pytest.raises(Copied):
        ended.join(Formation(3, 0, 1, "", 1))
