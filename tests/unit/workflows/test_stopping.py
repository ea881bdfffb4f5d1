"""A stop by signal, told in words from the driver's first moment to its report."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from eagleray.packaging import Folder
from eagleray.specs import TrainSpec, load
from eagleray.workflows import run as run_module
from eagleray.workflows.run import Run, drive
from eagleray.workflows.stopping import Stopped, stop_on_sigterm, stoppable
from unit.processes import ROOT, python


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


def end_me(*_: object) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return 0


def interrupt_me(*_: object) -> int:
    raise KeyboardInterrupt  # what `ray.get` makes of Stopped


def test_sigterm_is_an_interrupt_of_its_own() -> None:
    with pytest.raises(Stopped):
        end_me()
    assert issubclass(Stopped, KeyboardInterrupt), "the only one that Ray hands on"


@pytest.mark.parametrize("main", [end_me, interrupt_me])
def test_before_there_is_a_run_it_is_just_stopped(main, capsys: pytest.CaptureFixture[str]) -> None:
    assert stoppable(main)() == 1
    assert drive(main, 0.0) == 1
    assert capsys.readouterr().out == "stopped\n" * 2


@pytest.mark.parametrize("module", ["train", "resume"])
def test_a_driver_hears_it_while_it_imports(module: str) -> None:
    """The first import that main does is a slow one here, and SIGTERM comes in its middle."""
    code = (
        "import os, signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'argparse':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Slow())\n"
        f"from eagleray.workflows.{module} import main\n"
        "sys.exit(main(['x']))"
    )
    done = python("-c", code, cwd=ROOT / "platform")
    assert (done.returncode, done.stdout, done.stderr) == (1, "stopped\n", "")


@pytest.mark.parametrize("end", [end_me, interrupt_me])
def test_a_run_is_stopped_not_failed(
    end, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "_seats", end)
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml"), Folder(str(tmp_path)))
    assert drive(lambda: run, 0.0) == 1
    assert capsys.readouterr().out == "run r-1\nstopped; go on with it: eagleray resume r-1\n"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["error"]) == ("STOPPED", "stopped by a signal")


def test_a_stop_while_the_report_is_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_seats", lambda *_: nullcontext())
    monkeypatch.setattr(run_module, "_reserve", lambda *_: (None, 0.0))
    monkeypatch.setattr(run_module, "_monitor", lambda *_: None)
    monkeypatch.setattr(run_module, "_train", lambda *_: {"status": "FINISHED"})
    finish = run_module._finish
    monkeypatch.setattr(run_module, "_finish", lambda *given: (end_me(), finish(*given)))
    run = Run("r-1", load(TrainSpec, ROOT / "examples/train/digits.toml"), Folder(str(tmp_path)))
    report = run_module.execute(run, driver_started_at=0.0, say=print)
    assert report["status"] == "FINISHED"
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "FINISHED"
