"""Who is given up when the driver itself stood still, as the run ends, and where all wait for each other."""

from __future__ import annotations

from types import SimpleNamespace

from eagleray.training import listening_ray260, membership_ray260
from unit.training.test_membership import play

__all__ = ["play"]


def test_a_driver_that_stood_still_asks_once_more_before_it_takes_its_workers_for_dead(play, monkeypatch):
    played = play(2)
    monkeypatch.setattr(listening_ray260, "time", membership_ray260.time)
    monkeypatch.setattr(listening_ray260, "ray", SimpleNamespace(wait=lambda asked, **_: ([], asked)))
    for name in "ab":
        played.member(name).pending = object()
    played.membership._turn()
    played.now += 60
    played.membership._turn()
    assert (played.ended, played.membership._phase) == ([], "training"), "their answers are not read yet"
    for _ in range(9):
        played.now += 1.0
        played.membership._turn()
    assert played.ended == ["a", "b"], "silent since"


def test_formations_have_the_time_that_a_driver_stood_still(play, monkeypatch):
    played = play(2, is_begun=False)
    monkeypatch.setattr(listening_ray260, "time", membership_ray260.time)
    monkeypatch.setattr(listening_ray260, "ray", SimpleNamespace(wait=lambda asked, **_: ([], asked)))
    for name in "ab":
        played.tell(name, "waiting")
    played.membership._turn()
    played.now += 60
    played.membership._turn()
    assert played.membership._phase == "forming", "they may have trained for long"
