"""A job's log on a terminal: one bar at the bottom, the rest above it; `screen` plays the terminal."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from eagleray.cli.live import LiveLog, Progress, fitting
from eagleray.metrics import NullEmitter
from eagleray.packaging import Folder
from eagleray.specs import TuneSpec, load
from eagleray.specs.axes import draw
from eagleray.tuning import Trial
from eagleray.workflows.monitor import RunMonitor
from eagleray.workflows.report import Account
from eagleray.workflows.search_table import live as search_table_lines
from unit.client import stand_in
from unit.processes import ROOT
from unit.workflows.test_monitor import Tracked
from unit.workflows.test_report import formed, step

STEP = (
    "step {}/920 ({} %)  epoch 3  loss 0.2267  validation accuracy 92.31%  2,957 samples/s  ETA 0:18  "
    "2 workers on 2 nodes  sent 12.3 MB instead of 24.6 MB"
)
WIDTH = 160
CODES = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


def screen(output: str, width: int = WIDTH) -> list[str]:
    """What a terminal shows, line by line, after `output`; colours left out, blank ends too."""
    lines, row, column = [""], 0, 0
    for match in CODES.finditer(output):
        if match[0] == "\r":
            column = 0
        elif match[0] == "\n":
            row, column = row + 1, 0
        elif match[2] == "A":
            row = max(0, row - int(match[1] or 1))
        elif match[2] == "K":
            lines[row] = ""
        elif not match[2]:
            for letter in match[0]:
                if column == width:
                    row, column = row + 1, 0
                    lines += [""] * (row + 1 - len(lines))
                lines[row] = f"{lines[row]:<{column}}"[:column] + letter + lines[row][column + 1 :]
                column += 1
        lines += [""] * (row + 1 - len(lines))
    shown = [line.rstrip() for line in lines]
    while shown and not shown[-1]:
        del shown[-1]
    return shown


def bar(line: str) -> str:
    """The text beside the bar."""
    assert re.match(r"\s*[━╸╺]+ ", line), line
    return line.lstrip(" ━╸╺")


class Terminal(io.StringIO):
    def shown(self, width: int = WIDTH) -> list[str]:
        return screen(self.getvalue(), width)

    @property
    def is_cursor_visible(self) -> bool:
        return self.getvalue().rfind("\x1b[?25l") <= self.getvalue().rfind("\x1b[?25h")


def live(width: int = WIDTH) -> tuple[LiveLog, Terminal]:
    terminal = Terminal()
    return LiveLog(
        Console(file=terminal, force_terminal=True, width=width, color_system="standard")
    ), terminal


def test_a_runs_own_lines_are_understood(tmp_path: Path) -> None:
    said: list[str] = []
    monitor = RunMonitor(
        "r", Folder(str(tmp_path)), Account(), tracker=Tracked(), emitter=NullEmitter(), say=said.append,
        node_name=str,
    )  # type: ignore[arg-type]  # fmt: skip
    monitor.changed(formed(1, "a", "b"))
    monitor.records([step(10, 100.0)])
    progress = Progress.of(said[-1])
    assert progress is not None
    assert (progress.step, progress.total) == (10, 100)
    assert progress.parts[:3] == ("step 10/100 (10 %)", "ETA 0:09", "epoch 1")
    assert sorted(progress.parts) == sorted(said[-1].split("  "))
    assert all(Progress.of(line) is None for line in said[:-1])


@pytest.mark.parametrize(
    "line",
    ["", "steps 1/2 (50 %)  loss 1", "step 1/2", "(pid=7) step 1/2 (50 %)  loss 1", "step 1/0 (0 %)  loss 1"],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert Progress.of(line) is None


@pytest.mark.parametrize(
    ("width", "expected"),
    [(100, "a  bb  cccc  d"), (14, "a  bb  cccc  d"), (10, "a  bb  d"), (5, "a  bb"), (4, "a  d"), (0, "a")],
)
def test_what_does_not_fit_is_left_out_whole(width: int, expected: str) -> None:
    assert "  ".join(fitting(["a", "bb", "cccc", "d"], width)) == expected


def test_progress_stays_at_the_bottom_and_the_rest_scrolls_above_it() -> None:
    log, terminal = live()
    with log:
        log.write("run r\nattempt 1\n" + STEP.format(60, 6) + "\n")
        assert terminal.shown()[:-1] == ["run r", "attempt 1"]
        assert bar(terminal.shown()[-1]).startswith("step 60/920 (6 %)  ETA 0:18  epoch 3  loss 0.2267")
        log.write("lost rank 1\n" + STEP.format(61, 6) + "\n")
        assert terminal.shown()[:-1] == ["run r", "attempt 1", "lost rank 1"]
        assert bar(terminal.shown()[-1]).startswith("step 61/920")
        assert terminal.is_cursor_visible, "a killed command would leave the terminal without one"


def test_a_line_may_come_in_pieces() -> None:
    log, terminal = live()
    with log:
        for letter in f"one\n{STEP.format(60, 6)}\n\ntwo\n{STEP.format(61, 6)}\nthree":
            log.write(letter)
        assert terminal.shown()[:-1] == ["one", "", "two"]
        assert bar(terminal.shown()[-1]).startswith("step 61/920")
    assert terminal.shown() == ["one", "", "two", "three"]


def test_the_last_step_stands_as_it_was_said() -> None:
    log, terminal = live()
    with log:
        log.write(STEP.format(60, 6) + "\n")
        log.write(STEP.format(920, 100) + "\nfiles in x\n")
        assert terminal.shown() == [STEP.format(920, 100), "files in x"]
        log.write(STEP.format(1, 0) + "\n")
        assert bar(terminal.shown()[-1]).startswith("step 1/920")
    assert terminal.shown() == [STEP.format(920, 100), "files in x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_of_the_bar_is_left_where_following_ends_early(error: type[BaseException]) -> None:
    log, terminal = live()

    def follow() -> None:
        with log:
            log.write("run r\n" + STEP.format(60, 6) + "\n")
            raise error

    with pytest.raises(error):
        follow()
    assert terminal.shown() == ["run r"]
    assert terminal.is_cursor_visible


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal(width: int) -> None:
    log, terminal = live(width)
    long = "x" * 50
    with log:
        log.write(f"{STEP.format(60, 6)}\n{long}\n  {STEP.format(61, 6)}\n")
        *above, below = terminal.shown(width)
        assert "".join(above) == long
        assert len(below) < width
        assert bar(below).startswith("step 61/920"[: width // 2])
    assert "".join(terminal.shown(width)) == long


def test_colours_stay_and_what_would_move_the_cursor_goes() -> None:
    log, terminal = live()
    with log:
        log.write(f"{STEP.format(60, 6)}\n\x1b[36m(pid=7)\x1b[0m [bold]\x1b[5A ok\r\n 10%\r 99%\n")
        assert terminal.shown()[:-1] == ["(pid=7) [bold] ok", " 99%"]
    assert "\x1b[36m(pid=7)" in terminal.getvalue()


def search_table(seconds: float, *states: str) -> list[str]:
    """One block as a search says it."""
    spec = load(TuneSpec, ROOT / "examples/tune/digits.toml")
    source, trials = random.Random(0), []
    for number, state in enumerate(states, start=1):
        values = {path: draw(axis, source.random()) for path, axis in spec.space.items()}
        trials.append(Trial(number, values, f"r-{number:03}", state=state, nodes=["n1"]))
    return search_table_lines(spec, trials, seconds)


def test_a_searchs_table_stays_in_its_place() -> None:
    log, terminal = live()
    first, second = search_table(5, "running"), search_table(7, "finished", "running")
    with log:
        log.write("search s\n" + "\n".join(first) + "\n")
        assert terminal.shown() == ["search s", *first]
        log.write("trial 1: lost its process at step 3; it is started again\n")
        assert terminal.shown()[1:] == ["trial 1: lost its process at step 3; it is started again", *first]
        log.write("\n".join(second) + "\n")
        assert terminal.shown()[2:] == second
        log.write("search s: finished\n  trial  state\n      1  finished\n")
    assert terminal.shown() == [
        "search s",
        "trial 1: lost its process at step 3; it is started again",
        "search s: finished",
        "  trial  state",
        "      1  finished",
    ]


def test_a_table_that_comes_in_pieces_or_is_too_wide() -> None:
    log, terminal = live(40)
    block = search_table(5, "running", "running")
    with log:
        for letter in "\n".join(["", *(f"    {line}" for line in block), "after"]) + "\n":
            log.write(letter)
        assert terminal.shown(40) == ["", "after", *(f"    {line}"[:37].rstrip() for line in block)]


# --- the command itself ----------------------------------------------------------------------------


@pytest.fixture
def ray() -> Iterator[stand_in.Ray]:
    with stand_in.running() as ray:
        ray.add(
            "j", "RUNNING", f"run r\n{STEP.format(60, 6)}\nnote\n{STEP.format(61, 6)}\n", ends_as="SUCCEEDED"
        )
        yield ray


def environment(ray: stand_in.Ray, **more: str) -> dict[str, str]:
    mine = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    return {**mine, "RAY_API_SERVER_ADDRESS": ray.address, "RAY_AUTH_TOKEN": stand_in.TOKEN, **more}


COMMAND = [sys.executable, "-m", "eagleray.cli", "logs", "-f", "j"]


def on_terminal(env: dict[str, str], *, interrupt_at: str | None = None) -> tuple[int, str, bool]:
    """Exit code, output, and whether the terminal's settings are as before."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, WIDTH))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(COMMAND, cwd=ROOT, env=env, stdin=slave, stdout=slave, stderr=slave)
    output, deadline = "", time.monotonic() + 120
    try:
        while True:
            is_over = process.poll() is not None
            while select.select([master], [], [], 0.05)[0]:
                output += os.read(master, 65536).decode()
            if is_over:
                return process.returncode, output, termios.tcgetattr(slave) == before
            if interrupt_at is not None and interrupt_at in output:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
            assert time.monotonic() < deadline, output
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_on_a_terminal_the_bar_is_drawn_and_gone(ray: stand_in.Ray) -> None:
    code, output, is_as_before = on_terminal(environment(ray, TERM="xterm-256color"))
    assert (code, is_as_before) == (0, True), output
    assert "━" in output
    assert screen(output) == ["run r", "note"]


def test_ctrl_c_on_a_terminal_leaves_it_as_it_was(ray: stand_in.Ray) -> None:
    del ray.jobs["j"]["ends_as"]
    ray.hangs = True
    code, output, is_as_before = on_terminal(
        environment(ray, TERM="xterm-256color"), interrupt_at="step 61/920"
    )
    ray.hangs = False
    assert (code, is_as_before) == (130, True), output
    shown = screen(output)
    assert shown[:2] == ["run r", "note"]
    assert "".join(shown[2:]).startswith("detached; the job goes on. `eagleray logs -f j`")


def test_a_dumb_terminal_gets_plain_lines(ray: stand_in.Ray) -> None:
    code, output, _ = on_terminal(environment(ray, TERM="dumb"))
    assert (code, output.replace("\r\n", "\n")) == (0, ray.logs["j"])


@pytest.mark.parametrize("force", ["", "1"])
def test_in_a_file_the_lines_are_plain(ray: stand_in.Ray, force: str, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(
            COMMAND, cwd=ROOT, env=environment(ray, FORCE_COLOR=force), stdout=out, check=True, timeout=120
        )
    assert (tmp_path / "out").read_text() == ray.logs["j"]
