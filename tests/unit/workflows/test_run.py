"""The driver's main: an error in words and an exit code."""

import errno
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from eagleray.errors import DataError
from eagleray.packaging import Folder
from eagleray.specs import TrainSpec, load
from eagleray.training.attempts import note_attempt
from eagleray.training.stopping import Suspended
from eagleray.workflows import run as run_module
from eagleray.workflows.report import Account
from eagleray.workflows.run import Run, drive
from eagleray.workflows.run_summary import summary
from unit.processes import ROOT
from unit.workflows.test_report import chosen, formed, phase, step


def failing(error):
    def make_run():
        raise error

    return make_run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("x.csv: the file is empty"), 2, "error: x.csv: the file is empty\n"),
        (OSError(errno.ENOSPC, "full"), 1, "No space left on device; make room there"),
        (OSError(errno.EROFS, "read-only"), 1, "Read-only file system"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, error, code, said):
    assert drive(failing(error), 0.0) == code
    assert said in capsys.readouterr().err


def test_any_other_error_of_the_system_shows_where():
    with pytest.raises(BrokenPipeError):
        drive(failing(BrokenPipeError(errno.EPIPE, "gone")), 0.0)


def test_a_run_that_is_lost_twice_in_a_row_tells_both(tmp_path):
    account = Account(attempt=1)
    account.take(step(60, 6.0))
    account.lost([1], "its process ended")
    account.attempt = 2
    account.lost([0], "its process ended")
    lost = [line for line in _summary(account, tmp_path) if "lost rank" in line]
    assert lost == [
        "  lost rank 1 after step 60; lost again before it was back",
        "  lost rank 0 after step 60; not back before the end",
    ]
    account.take(phase(50, 15.0, attempt=3))
    account.take(step(51, 16.0))
    lost = [line for line in _summary(account, tmp_path) if "lost rank" in line]
    assert lost[1] == "  lost rank 0 after step 60; training again after 10.0 s, 10 steps redone"


def test_the_summary_names_the_nodes_of_those_that_were_lost(tmp_path):
    account = Account()
    account.changed(formed(1, "a", "b", "c"), str.upper)
    account.take(step(60, 6.0))
    account.lost([1, 2], "their node is gone")
    assert any(
        line.startswith("  lost rank 1 (node B), 2 (node C) after step 60; ")
        for line in _summary(account, tmp_path)
    )


def test_the_summary_says_where_the_time_went(tmp_path):
    account = Account(marks={"submitted_at": 0.0, "nodes": 2.0})
    account.changed(formed(1, "a", time=3.0))
    for record in (phase(0, 4.0), step(60, 12.0)):
        account.take(record)
    account.ended(12.5)
    assert _summary(account, tmp_path)[1] == (
        "  goodput 64.0%: 8.0 s of steps in 12.5 s; start 2.0 s, wait 2.0 s, rest 0.5 s"
    )


def test_bytes_are_told_where_some_were_sent(tmp_path):
    account = Account()
    account.take(step(10, 1.0, sent=0.0))
    assert not any("sent" in line for line in _summary(account, tmp_path))


def _summary(account, folder, changes=()):
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml", changes), Folder(str(folder)))
    return summary(run, {"status": "FINISHED", "seconds": 1.0, **account.to_json()})


@pytest.mark.parametrize(
    ("kind", "records", "said"),
    [
        (
            "none",
            [step(10, 1.0, sent=1e6) | {"uncompressed_bytes": 1e6}],
            ["  gradients as none: sent 1.0 MB"],
        ),
        (
            "auto",
            [step(10, 1.0, sent=1.2e9) | {"skipped_steps": 2}, chosen(9, "int8", "auto chose int8: it pays")],
            [
                "  gradients as auto (int8): sent 1.2 GB instead of 2.4 GB, 2.00x less",
                "  step 9: auto chose int8: it pays",
                "  2 steps skipped: a gradient was not finite",
            ],
        ),
    ],
)
def test_the_summary_says_how_the_gradients_were_sent(tmp_path, kind, records, said):
    account = Account()
    for record in records:
        account.take(record)
    lines = _summary(account, tmp_path, [f"compression.kind={kind}"])
    assert lines[3 : 3 + len(said)] == said


def test_a_suspended_run_goes_on_with_the_seats_of_its_next_turn(tmp_path, monkeypatch):
    said, account, released = [], Account(step=40, position=40), []
    account.take({"kind": "unsaved", "time": 90.0, "step": 20})
    suspended = {
        "is_suspended": True,
        "reason": "needed by chat",
        "step": 40,
        "time": 100.0,
        "num_workers": 2,
    }
    outcomes = [
        {**suspended, "is_forced": False, "step": 20}, {**suspended, "is_forced": False},
        {**suspended, "is_forced": True}, {"progress": {"step": 60}},
    ]  # fmt: skip
    attempts, given = [], []

    def fit(spec, run_url, *, first_attempt, reservation, observer):
        attempts.append(first_attempt)
        given.append(reservation.name)
        note_attempt(folder, first_attempt, 1)
        return outcomes.pop(0)

    def reservation(name):
        return SimpleNamespace(name=name, release=lambda: released.append(name))

    folder = Folder(str(tmp_path))
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml", []), folder)
    turns = [
        (reservation(name), time) for name, time in (("other", 101.0), ("second", 112.5), ("third", 130.0))
    ]
    monkeypatch.setattr("eagleray.training.trainer.fit", fit)
    monkeypatch.setattr(run_module, "_reserve", lambda seats, say: turns.pop(0))
    seats = SimpleNamespace(watching=lambda observer: observer)
    monitor = SimpleNamespace(account=account)
    found = run_module._train(run, seats, reservation("first"), monitor, said.append)
    assert found == {"progress": {"step": 60}}
    assert (attempts, given, released) == ([1, 2, 3, 4], *[["first", "other", "second", "third"]] * 2)
    assert said == [
        "suspended after step 20: needed by chat; that could not be saved, and it goes on from the "
        "checkpoint before",
        "going on after 1.0 s: it has nodes again",
        "suspended after step 40: needed by chat; all of it is saved",
        "going on after 12.5 s: it has nodes again",
        "suspended after step 40: needed by chat; it had not saved that in time, and goes on from the "
        "checkpoint before",
        "going on after 30.0 s: it has nodes again",
    ]
    (lost,) = account.recoveries
    assert (lost.ranks, lost.reason) == ([0, 1], "not given back in time (needed by chat)")
    assert [(one["began_at"], one["ended_at"], one["is_saved"]) for one in account.suspensions] == [
        (100.0, 101.0, False),
        (100.0, 112.5, True),
        (100.0, 130.0, False),
    ]


@pytest.mark.parametrize(
    ("position", "is_lost", "said", "is_saved"),
    [
        (0, False, "suspended, before its workers trained: needed by chat", True),
        (40, False, "suspended at step 40, before its workers trained: needed by chat", True),
        (
            47,
            True,
            "suspended at step 47, before its workers trained: needed by chat; steps since the last "
            "checkpoint are taken again",
            False,
        ),
    ],
)
def test_a_run_that_is_suspended_before_it_trains_says_what_was_lost_before(
    tmp_path, monkeypatch, position, is_lost, said, is_saved
):
    account, lines = Account(step=position, position=position), []
    if is_lost:
        account.lost([0, 1], "its process ended", 90.0)
    suspended = {"is_suspended": True, "reason": "needed by chat", "step": 0, "time": 100.0}
    outcomes = [{**suspended, "num_workers": 0, "is_forced": False}, {"progress": {"step": 60}}]
    reservation = SimpleNamespace(release=lambda: None)
    monkeypatch.setattr("eagleray.training.trainer.fit", lambda *_, **__: outcomes.pop(0))
    monkeypatch.setattr(run_module, "_reserve", lambda *_: (reservation, 101.0))
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml", []), Folder(str(tmp_path)))
    seats = SimpleNamespace(watching=lambda observer: observer)
    run_module._train(run, seats, reservation, SimpleNamespace(account=account), lines.append)
    assert lines == [said, "going on after 1.0 s: it has nodes again"]
    assert [one["is_saved"] for one in account.suspensions] == [is_saved]


def test_a_number_that_could_not_be_noted_is_not_given_again(tmp_path, monkeypatch):
    account, attempts = Account(), []
    suspended = {"is_suspended": True, "reason": "needed by chat", "time": 100.0, "is_forced": False}
    outcomes = [{**suspended, "step": 40, "num_workers": 2}, {"progress": {"step": 60}}]

    def fit(*_, first_attempt, **__):
        attempts.append(first_attempt)
        account.attempt = first_attempt + 3  # a loss or two, and the disk is full: none of them is noted
        return outcomes.pop(0)

    reservation = SimpleNamespace(release=lambda: None)
    monkeypatch.setattr("eagleray.training.trainer.fit", fit)
    monkeypatch.setattr(run_module, "_reserve", lambda *_: (reservation, 101.0))
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml", []), Folder(str(tmp_path)))
    seats = SimpleNamespace(watching=lambda observer: observer)
    run_module._train(run, seats, reservation, SimpleNamespace(account=account), lambda text: None)
    assert attempts == [1, 5]


def test_seats_that_go_before_there_is_a_worker_are_waited_for_anew():
    released, said = [], []

    class Played:
        def __init__(self, name, outcome):
            self.name, self.outcome = name, outcome

        def wait(self, say):
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        def release(self):
            released.append(self.name)

    waiting = [Played("first", Suspended("needed by chat")), Played("second", 5e9)]
    found, there_at = run_module._reserve(SimpleNamespace(reserve=lambda: waiting.pop(0)), said.append)
    assert (found.name, there_at, released) == ("second", 5e9, ["first"])


def test_seats_are_given_back_where_there_is_no_monitor(tmp_path, monkeypatch):
    released = []
    reservation = SimpleNamespace(release=lambda: released.append("seats"))

    def failing_monitor(run, account, say):
        raise DataError("mlflow.json: not JSON")

    monkeypatch.setattr(run_module, "_seats", lambda run, account: nullcontext())
    monkeypatch.setattr(run_module, "_reserve", lambda seats, say: (reservation, 5.0))
    monkeypatch.setattr(run_module, "_monitor", failing_monitor)
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml", []), Folder(str(tmp_path)))
    with pytest.raises(DataError):
        run_module.execute(run, driver_started_at=0.0, say=print)
    assert released == ["seats"]
    assert run.folder.read_json("report.json")["status"] == "FAILED"
