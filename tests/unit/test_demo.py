"""How a demo ends: its exit code, and whether its cluster is ended; its steps and its cluster are played."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unit.processes import ROOT

MODULES = ("common", "ending", "playing")


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The demos' module, which finds its neighbours as it does where a demo is run."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "demo"))
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    found = importlib.import_module("playing")
    monkeypatch.setattr(found, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=15))
    monkeypatch.setattr(found, "is_running", lambda: False)
    yield found
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def performed(playing: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Any = None, **more: Any) -> Any:
    """The exit code, and what was done at the end."""
    done: list[Any] = []
    monkeypatch.setattr(playing, "take_down", lambda _, number: done.append(f"ended as step {number}") or 0)
    monkeypatch.setattr(playing, "left_up", lambda: done.append("left up"))
    monkeypatch.setattr(playing, "closing", lambda tally: done.append(tally.rows))

    def play(_: object) -> None:
        if error is not None:
            raise error

    return playing.perform(play, 7, **more), done


def test_a_demo_that_is_over_ends_its_cluster_and_says_what_happened(playing, monkeypatch):
    monkeypatch.delenv("KEEP", raising=False)
    assert performed(playing, monkeypatch) == (0, ["ended as step 7", [("whole demo", "0 s")]])
    code, done = performed(playing, monkeypatch, goal_s=240.0)
    assert (code, done[1]) == (0, [("whole demo", "0 s (goal 240 s)")])


def test_a_demo_whose_cluster_is_to_stay_leaves_it_up(playing, monkeypatch):
    monkeypatch.setenv("KEEP", "1")
    code, done = performed(playing, monkeypatch)
    assert (code, done[0]) == (0, "left up")


@pytest.mark.parametrize(("is_failure", "code"), [(True, 1), (False, 130)])
def test_a_demo_that_fails_or_is_interrupted_ends_its_cluster_in_any_case(
    playing, monkeypatch, is_failure, code
):
    monkeypatch.setenv("KEEP", "1")
    error = playing.DemoError("no node came") if is_failure else KeyboardInterrupt()
    assert performed(playing, monkeypatch, error) == (code, ["ended as step 7"])


def test_a_cluster_of_the_demos_name_is_somebody_elses(playing, monkeypatch):
    monkeypatch.setattr(playing, "is_running", lambda: True)
    assert performed(playing, monkeypatch) == (1, [])
