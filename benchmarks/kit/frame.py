"""The frame of a benchmark: its arguments, which of its rows run, what is kept and said of them."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kit.checkout import RESULTS
from kit.keeping import row_line
from kit.progress import Progress

INTERRUPTED = 130
"""Exit code."""
KEPT = "interrupted; what was measured is kept"
T = TypeVar("T")


class Row(Protocol):
    """As far as the frame looks at one."""

    @property
    def name(self) -> str:
        """By which it is asked for."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether it runs with --full only."""
        ...


R = TypeVar("R", bound=Row)


class Report(Protocol):
    """A benchmark's own module of that name."""

    def read(self, folder: Path) -> dict[str, Any]:
        """The rows that an earlier run wrote."""
        ...

    def save(self, rows: Mapping[str, Any], about: Mapping[str, Any], folder: Path) -> None:
        """Write its files."""
        ...


# ---- arguments


def listed(kind: Callable[[str], T] = str) -> Callable[[str], list[T]]:
    """Reads values with commas between them."""
    return lambda text: [kind(one) for one in text.split(",") if one]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Shows a module's text as it is, and knows --results."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--results", type=Path, default=RESULTS, help="folder to write into")
    return found


def rows_parser(doc: str | None, names: Iterable[str]) -> argparse.ArgumentParser:
    """As `parser`, of a benchmark that consists of rows."""
    found = parser(doc)
    found.add_argument("--full", action="store_true", help="the long rows too")
    found.add_argument("--rows", type=listed(), help=f"only these, of: {', '.join(names)}")
    found.add_argument("--skip", type=listed(), default=[], help="not these")
    found.add_argument("--reps", type=int, help="repetitions of each row, in place of its own number")
    found.add_argument("--verbose", action="store_true", help="each repetition as a line")
    return found


def is_known(option: str, asked: Iterable[str] | None, what: str, known: Collection[str]) -> bool:
    """Whether there are all that an option asks for; where not, that is said."""
    unknown = set(asked or ()) - set(known)
    if unknown:
        print(
            f"{option}: no {what} {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr
        )
    return not unknown


def chosen(rows: Mapping[str, R], options: argparse.Namespace) -> list[R] | None:
    """Those that are to run, in their order; None: one is asked for that is not there, which is said."""
    if not (is_known("--rows", options.rows, "row", rows) and is_known("--skip", options.skip, "row", rows)):
        return None
    if options.rows:
        return [row for row in rows.values() if row.name in options.rows]
    return [
        row for row in rows.values() if row.name not in options.skip and (options.full or not row.is_full)
    ]


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a run as a whole, when it begins."""
    # Not where this machine has its files.
    told = {name: str(value) for name, value in vars(options).items() if name != "results"}
    return {"started": time.time(), "options": told}


def interruptible() -> None:
    """Have SIGTERM and SIGHUP do what Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, signal.default_int_handler)


# ---- a run


class Session:
    """One run of a benchmark that consists of rows.

    Args:
        options: Of its `rows_parser`.
        name: Of its files.
        report: Its own.
    """

    def __init__(self, options: argparse.Namespace, name: str, report: Report) -> None:
        self.progress = Progress(is_verbose=options.verbose)
        self.rows = report.read(options.results) if options.rows else {}
        """Results by name; where only some rows are asked for, the others' last ones too."""
        self.is_interrupted = False
        self.options = options
        self._name, self._report, self._about = name, report, about(options)

    def over(self, name: str, result: Mapping[str, Any]) -> None:
        """Say that a row is over; its result has the `load_before` it began."""
        self.progress.line(f"{row_line(name, result)} (load before: {result['load_before'][0]:.1f})")

    def keep(self, results: Mapping[str, Any]) -> None:
        """Have the results of these rows, too, in the files."""
        self.rows |= results
        self._save()

    def end(self, tables: Iterable[Callable[[Mapping[str, Any]], str | None]]) -> int:
        """Say the tables, where they have something to say, and where the files are; the exit code."""
        self._about["seconds"] = time.time() - self._about["started"]
        self._save()
        for said in (table(self.rows) for table in tables):
            if said is not None:
                self.progress.line(f"\n{said}")
        if self.is_interrupted:
            self.progress.line(f"\n{KEPT}")
        self.progress.line(f"\n{ended(self._about, self.options.results, self._name)}")
        return INTERRUPTED if self.is_interrupted else 0

    def _save(self) -> None:
        self._report.save(self.rows, self._about, self.options.results)


def ended(about: Mapping[str, Any], folder: Path, name: str) -> str:
    """The last line of a run: how long it took, and where its files are."""
    return f"{about['seconds'] / 60:.1f} minutes; {folder}/{name}.json, {name}.png"
