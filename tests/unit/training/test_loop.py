"""What follows a step, and where a loss cuts it off; without ranks."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagleray.errors import PeerLost
from eagleray.specs.train import EarlyStopping
from eagleray.training import loop
from eagleray.training.life import Yielded
from eagleray.training.progress import Progress
from eagleray.training.station import STEP, UPDATE, Station
from eagleray.training.telemetry import Buffer


def parts(*, early_stopping: EarlyStopping | None = None) -> Any:
    """As much of `Parts` as what follows a step needs: 100 steps, evaluated and committed each 10."""
    training = SimpleNamespace(evaluate_every_steps=10, early_stopping=early_stopping)
    checkpoint = SimpleNamespace(every_steps=10, at_evaluations=False)
    return SimpleNamespace(
        spec=SimpleNamespace(training=training, checkpoint=checkpoint),
        total_steps=100,
        dataset=SimpleNamespace(validation=object()),
        hook=SimpleNamespace(bucket_stats=dict),
    )


class PlayedLife:
    """As much of `Life`; its first commit is cut off by a loss."""

    def __init__(self, progress: Progress):
        self.progress, self.settled_step, self.num_commits = progress, progress.step - 1, 0
        self.sink = Buffer()
        self.committer = SimpleNamespace(poll=lambda: None, await_copies=lambda: None)
        self.station = SimpleNamespace(at=lambda *_: None)

    def commit(self) -> None:
        self.num_commits += 1
        if self.num_commits == 1:
            raise PeerLost("rank 1 is gone")


def test_an_evaluation_whose_commit_is_cut_off_by_a_loss_is_judged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 0.9})
    found = parts(early_stopping=EarlyStopping(metric="validation_loss", patience=2))
    life: Any = PlayedLife(Progress(step=10, best=0.5))
    meter: Any = SimpleNamespace(is_first=False, report=lambda *_: None)
    with pytest.raises(PeerLost):
        loop.settle(found, life, meter)
    assert (life.progress, life.settled_step) == (Progress(step=10, best=0.5), 9)
    loop.settle(found, life, meter)
    assert (life.progress.stale_evaluations, life.progress.is_stopped_early) == (1, False)
    assert (life.settled_step, life.num_commits) == (10, 2)


@pytest.mark.parametrize("is_stopped_early", [False, True])
def test_steps_since_the_last_report_are_counted_before_the_ranks_stop(
    monkeypatch: pytest.MonkeyPatch, is_stopped_early: bool
) -> None:
    told: list[str] = []

    class PlayedMeter:
        def __init__(self, parts: Any):
            self.is_first = False

        def report(self, sink: Any, progress: Progress) -> None:
            told.append(f"report at {progress.step}")

    def take(parts: Any, life: Any, *_: Any, **__: Any) -> Any:
        life.progress = Progress(step=life.progress.step + 1, is_stopped_early=is_stopped_early)
        return SimpleNamespace(num_next=1, is_asked_to_stop=True)

    def yield_to_driver() -> None:
        told.append("yield")
        raise Yielded

    monkeypatch.setattr(loop, "Meter", PlayedMeter)
    monkeypatch.setattr(loop, "Buffers", lambda module: None)
    monkeypatch.setattr(loop, "take", take)
    monkeypatch.setattr(loop, "settle", lambda *_: None)
    monkeypatch.setattr(loop, "digest", lambda *_: torch.zeros(1))
    shard = SimpleNamespace(epoch=0, positions=None, weights=None)
    found: Any = SimpleNamespace(
        module=None,
        rank=0,
        world_size=1,
        total_steps=100,
        loader=SimpleNamespace(iterate=lambda *_: (shard for _ in range(9))),
        agreement=SimpleNamespace(vote=lambda **_: None),
    )
    life: Any = PlayedLife(Progress(step=2))
    life.settled_step, life.station.wanted, life.yield_to_driver = 2, 1, yield_to_driver
    with suppress(Yielded):
        loop.train(found, life)
    assert told == (["report at 3"] if is_stopped_early else ["report at 3", "yield"])


def test_who_updates_the_weights_does_not_say_that_it_waits_but_for_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life: Any = PlayedLife(Progress(step=2))
    life.station, life.skipped, life.took = Station(), 0, lambda *_: None
    life.committer.await_copies = lambda: said.append(("copies", False))
    said: list[tuple[str, bool]] = []

    def look(*_: Any) -> int:
        said.append((life.station.news(0).doing, life.station.news(0).is_waiting))
        return 0

    def vote() -> Any:
        look()
        return SimpleNamespace(consumed=[])

    for name in ("set_learning_rate", "seed_dropout"):
        monkeypatch.setattr(loop, name, lambda *_: None)
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 0.1)
    monkeypatch.setattr(loop, "backward", lambda *_: look() or [])
    monkeypatch.setattr(loop, "take_step", look)
    found: Any = parts()
    found.spec.optimizer, found.spec.schedule = SimpleNamespace(lr=0.1), None
    found.optimizer = SimpleNamespace(zero_grad=lambda **_: None)
    played: Any = SimpleNamespace(keep=lambda: None, add=lambda *_, **__: None, result=vote)
    loop.take(found, life, played, played, 0, meter=played, buffers=played)
    assert said == [(STEP, False), ("wait for the step's vote", True), ("copies", False), (UPDATE, False)]
