"""What verbs print: tables, JSON, and what to do next.

stdout has the result and nothing else, so that it can be piped; what is said beside it goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

import click


def print_json(found: Any) -> None:
    """One JSON document: dataclasses as objects, paths as text."""
    import json

    click.echo(json.dumps(_plain(found), indent=2, default=str))


def _plain(found: Any) -> Any:
    import dataclasses

    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return dataclasses.asdict(found)
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    return [_plain(item) for item in found] if isinstance(found, list) else found


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[str] = ()
) -> None:
    """The rows under their columns, those of `right` flush right; plain text where there is no terminal."""
    cells = [["-" if cell in (None, "") else str(cell) for cell in row] for row in rows]
    if is_terminal():
        _print_rich(columns, cells, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        line = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        )
        click.echo("  ".join(line).rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        # Only the last column wraps: the others are names to copy.
        is_last = name == columns[-1]
        justify = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not is_last)
    for row in rows:
        table.add_row(*(Text(cell, _STATES.get(cell, "")) for cell in row))
    Console().print(table)


_STATES = {"ready": "green", "starting": "yellow", "stopping": "yellow", "failed": "red"}


def is_terminal() -> bool:
    """Whether somebody looks at stdout."""
    return sys.stdout.isatty()


def next_steps(*commands: str, flags: str = "") -> None:
    """Say which commands come next, beside the result.

    Args:
        commands: Each may have a remark after three blanks.
        flags: Added to each: what named the cluster.
    """
    for command in commands:
        asked, blanks, remark = command.partition("   ")
        if asked.startswith("eagleray publish"):  # its --name is the model's, and it is a job
            asked += flags.replace(" --name ", " --cluster ") if flags.startswith(" --name ") else ""
        elif asked.startswith("eagleray"):
            asked += flags
        click.echo(click.style(f"next: {asked}{blanks}{remark}", dim=True), err=True)


def date(seconds: float) -> str:
    """Local date and time of a moment given in seconds since the epoch."""
    import datetime

    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
