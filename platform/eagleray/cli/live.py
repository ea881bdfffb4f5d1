"""A job's log on a terminal: its progress lines become one bar at the bottom, the others scroll above it.

Imported only where there is a terminal: rich costs more than all the rest of the command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

BAR_WIDTH, SHORT_BAR_WIDTH = 24, 10
WIDE = 120
"""Columns of a terminal that has room for the long bar."""
SPARE = 3
"""Columns left free at the right: the terminal writes ^C there, and a full line would wrap."""
_STEP = re.compile(r"(\s*)(step (\d+)/(\d+) \(\d+ %\))  (\S.*)")


@dataclass(frozen=True)
class Progress:
    """What a progress line of a run says (`RunMonitor` writes it)."""

    step: int
    total: int
    parts: tuple[str, ...]
    """Of its text, the most wanted first."""
    indent: str = ""

    @classmethod
    def of(cls, line: str) -> Progress | None:
        """The progress that `line` tells; None where it is another line."""
        match = _STEP.fullmatch(line)
        if match is None or int(match[4]) == 0:
            return None
        rest = sorted(match[5].split("  "), key=lambda part: not part.startswith("ETA "))
        return cls(int(match[3]), int(match[4]), (match[2], *rest), match[1])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width - len(self.indent) - SPARE, 1)
        bar_width = BAR_WIDTH if options.max_width >= WIDE else min(SHORT_BAR_WIDTH, width // 4)
        text = "  ".join(fitting(self.parts, width - bar_width - 1))
        yield Text(self.indent, end="")
        yield ProgressBar(total=self.total, completed=self.step, width=bar_width)
        yield Text(f" {text}"[: width - bar_width], end="")


def fitting(parts: Sequence[str], width: int) -> list[str]:
    """The first of `parts`, and each other one that still fits into `width` with two blanks before it."""
    chosen = list(parts[:1])
    free = width - sum(map(len, chosen))
    for part in parts[1:]:
        if len(part) + 2 <= free:
            chosen.append(part)
            free -= len(part) + 2
    return chosen


class LiveLog:
    """Shows a log on `console`, which is a terminal; the bar is gone when the `with` block ends.

    The progress line of the last step is printed as it is: it stays, with the lines after it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._rest = ""

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(self, *_: object) -> None:
        rest, self._rest = self._rest, ""
        self._hide()
        if rest:
            self._print(rest)

    def write(self, text: str) -> None:
        """Take a piece of the log; what stands after its last newline waits for the rest of the line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(line.rstrip("\r"))
        if self._progress is not None:
            self._show(self._progress)

    def _take(self, line: str) -> None:
        progress = Progress.of(line)
        if progress is not None and progress.step < progress.total:
            self._progress = progress
            return
        if progress is not None:
            self._hide()
        self._print(line)

    def _print(self, line: str) -> None:
        """Print a line above the bar: its colours stay, what would move the cursor is left out."""
        self._console.print(Text.from_ansi(line), soft_wrap=True)

    def _show(self, progress: Progress) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._console.show_cursor(True)  # rich hides it: after a kill the shell would have none
        self._live.update(progress, refresh=True)

    def _hide(self) -> None:
        """Take the bar away, if there is one."""
        live, self._live, self._progress = self._live, None, None
        if live is not None:
            live.stop()
