"""How Ray Train forms a run's default group, and what a failure of it means; Ray is played."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError

from eagleray.errors import PeerLost
from eagleray.training import backend_ray260, trainer_ray260
from eagleray.training.backend_ray260 import GroupBackend, GroupConfig


class PlayedWorkers:
    """Two workers; `execute_single_async` returns its call in the place of a reference."""

    def __len__(self):
        return 2

    def execute_single(self, rank, function):
        assert (rank, function) == (0, backend_ray260.choose_address)
        return "10.77.0.1:4000"

    def execute_single_async(self, rank, function, *arguments):
        assert function is backend_ray260.join
        return (rank, *arguments)


class PlayedRay:
    """References are the calls themselves; `failures` by rank are raised by `get`."""

    def __init__(self, failures):
        self.failures, self.joined = failures, []

    def wait(self, refs, *, num_returns, timeout):
        assert (num_returns, timeout) == (2, 0)
        return [ref for ref in refs if ref[0] in self.failures], []

    def get(self, refs):
        for ref in refs if isinstance(refs, list) else [refs]:
            if ref[0] in self.failures:
                raise self.failures[ref[0]]
            self.joined.append(ref)


def start(monkeypatch, failures):
    played = PlayedRay(failures)
    monkeypatch.setattr(backend_ray260, "ray", played)
    GroupBackend().on_start(PlayedWorkers(), GroupConfig(timeout_s=30))
    return played.joined


def test_every_rank_joins_where_rank_0_listens(monkeypatch):
    assert start(monkeypatch, {}) == [(rank, "10.77.0.1:4000", rank, 2, 30) for rank in range(2)]


LOST = RayTaskError("join", "Traceback …", PeerLost("rank 0 of 2 could not meet the others"))


def test_a_rank_that_is_lost_meanwhile_counts_as_one_lost_later(monkeypatch):
    death = ActorDiedError()
    with pytest.raises(WorkerGroupError) as caught:
        start(monkeypatch, {0: LOST.as_instanceof_cause(), 1: death})
    found = trainer_ray260.failures(caught.value)
    assert type(found[0]) is PeerLost
    assert str(found[0]) == "rank 0 of 2 could not meet the others"
    assert found[1] is death
    assert trainer_ray260.final_error(caught.value) is None
    assert trainer_ray260.root_failure(found) == (1, death)


def test_another_error_is_what_it_is(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        start(monkeypatch, {1: ZeroDivisionError()})
