"""A job's log on a terminal: its progress, a bar or a table, stays at the bottom; the rest scrolls above it.

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
_HEADLINE = re.compile(r"\s*(\d+:)?\d+:\d\d  trial \d+ of \d+: ")
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


@dataclass(frozen=True)
class SearchTable:
    """What a search says again and again (`search_table.live` writes it): its headline, and rows below it."""

    lines: tuple[str, ...]

    @classmethod
    def of(cls, line: str) -> SearchTable | None:
        """The table that begins with `line`; None where it is another line."""
        return cls((line,)) if _HEADLINE.match(line) else None

    def with_row(self, line: str) -> SearchTable | None:
        """The table with one more row; None where the line is not below its headline."""
        indent = len(self.lines[0]) - len(self.lines[0].lstrip())
        is_row = line.startswith(" " * (indent + 2)) and not line.isspace()
        return SearchTable((*self.lines, line)) if is_row else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width - SPARE, 1)
        yield Text("\n".join(line[:width] for line in self.lines), end="")


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
    """Shows a log on `console`, which is a terminal; bar or table are gone when the `with` block ends.

    The progress line of the last step is printed as it is: it stays, with the lines after it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._bottom: Progress | SearchTable | None = None
        self._table: SearchTable | None = None
        """The one that the line before belongs to."""
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
        if self._bottom is not None:
            self._show(self._bottom)

    def _take(self, line: str) -> None:
        grown = self._table.with_row(line) if self._table is not None else None
        if grown is not None:
            self._bottom = self._table = grown
            return
        table, progress = SearchTable.of(line), Progress.of(line)
        self._table = table
        if table is not None:
            self._bottom = table
        elif progress is not None and progress.step < progress.total:
            self._bottom = progress
        else:
            if progress is not None:
                self._hide()
            self._print(line)

    def _print(self, line: str) -> None:
        """Print a line above the bottom: its colours stay, what would move the cursor is left out."""
        self._console.print(Text.from_ansi(line), soft_wrap=True)

    def _show(self, bottom: Progress | SearchTable) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            self._console.show_cursor(True)  # rich hides it: after a kill the shell would have none
        self._live.update(bottom, refresh=True)

    def _hide(self) -> None:
        """Take away what stands at the bottom, if anything does."""
        live, self._live, self._bottom = self._live, None, None
        if live is not None:
            live.stop()
