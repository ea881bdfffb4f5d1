"""An evaluation that is cut off; data and model are played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from eagleray import groups
from eagleray.errors import PeerLost
from eagleray.groups import making
from eagleray.training import evaluate as evaluating


def test_a_rank_that_evaluates_gives_up_when_its_groups_are_broken(monkeypatch):
    taken: list[int] = []
    shards = SimpleNamespace(once=lambda *_: iter(range(100)))
    monkeypatch.setattr(evaluating.data, "Loader", lambda *_, **__: shards)
    monkeypatch.setattr(evaluating, "has_local_buffers", lambda parts: False)
    monkeypatch.setattr(evaluating, "_fixed_masks", lambda parts: None)
    monkeypatch.setattr(evaluating, "_add", lambda sums, parts, shard: taken.append(shard))
    monkeypatch.setattr(evaluating.groups, "are_broken", lambda: len(taken) == 3)
    parts: Any = SimpleNamespace(module=nn.Linear(1, 1), rank=1, world_size=2)
    part: Any = None
    with pytest.raises(PeerLost, match="rank 1 of 2: another was lost during an evaluation"):
        evaluating.evaluate(parts, part)
    assert taken == [0, 1, 2]
    assert parts.module.training, "the next formation trains on"


def test_groups_are_broken_until_they_are_closed(monkeypatch):
    group = groups.Group("gradients", None, 0, 2, "gloo")  # type: ignore[arg-type]
    monkeypatch.setattr(making, "_open_groups", [group])
    assert not groups.are_broken()
    groups.break_groups()
    assert groups.are_broken()
    groups.close_all()
    assert not groups.are_broken()
    making._open_groups.append(group)
    assert not groups.are_broken(), "the next ones are whole"
