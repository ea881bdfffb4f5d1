"""Serving: what the ingress adds and carries, against bare uvicorn and its peers: `make bench-serving`.

    python benchmarks/serving                       all rows but the long ones, in about 25 minutes
    python benchmarks/serving --full                those too: scaling, failures, a soak (55 min more)
    python benchmarks/serving --rows tiny,added     only these; the others' last results stay
    python benchmarks/serving --seconds 1 --reps 1  shorter blocks, fewer of them: a look

Contestants take turns in blocks of 5 s. A row whose feature the platform has not says so and why, and the
rest goes on. Prints the tables in markdown; writes serving.json after each row, and serving.png, into
benchmarks/results. The peers' environments are installed from PyPI when they are first wanted, and kept.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import place  # first: it says where eagleray is
from progress import Progress
from rows import ROWS, Row

INTERRUPTED = "interrupted"

if TYPE_CHECKING:
    from rig import Rig


def main() -> int:
    """Measure what the options say; returns 0 also where aims are missed: they are a table, not a test."""
    options = _options()
    unknown = set(options.rows or []) | set(options.skip)
    unknown -= set(ROWS)
    if unknown:
        print(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, signal.default_int_handler)
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    import load
    import report
    from rig import Rig

    from eagleray.cluster import processes

    try:
        load.program()
    except load.LoadError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [row for row in ROWS.values() if _is_chosen(row, options)]
    rows = report.read(options.results) if options.rows else {}
    began = time.time()
    about = {
        "started": began,
        "options": {name: str(value) for name, value in vars(options).items() if name != "results"},
    }
    progress, code = Progress(is_verbose=options.verbose), 0
    with place.home() as home:
        rig = Rig(home, block_s=options.seconds)
        try:
            for row in chosen:
                rows[row.name] = _run(row, options, rig, progress)
                report.save(rows, about, options.results)
                if rows[row.name]["failure"] == INTERRUPTED:
                    code = 130
                    break
        finally:
            progress.close()
            with processes.undisturbed():
                rig.close()
    about["seconds"] = time.time() - began
    report.save(rows, about, options.results)
    tables = (report.table, report.peers_table, report.profile_table, report.disturbances)
    for said in (table(rows) for table in tables):
        if said is not None:
            progress.line(f"\n{said}")
    if code:
        progress.line("\ninterrupted; what was measured is kept")
    where = f"{options.results}/serving.json, serving.png"
    progress.line(f"\n{about['seconds'] / 60:.1f} minutes; {where}")
    return code


def _run(row: Row, options: argparse.Namespace, rig: Rig, progress: Progress) -> dict[str, Any]:
    """One row's result, said in a line; `failure` is INTERRUPTED where it was."""
    import report
    from load import LoadError
    from results import NotAvailable, RowFailed, Teller
    from running import NotRunning

    teller = Teller(lambda text: progress.note(f"{row.name}: {text}"))
    teller.note("starting")
    load_before, began = os.getloadavg(), time.monotonic()
    module, _, function = row.function.partition(":")
    try:
        work = getattr(importlib.import_module(module), function)
        work(teller, options.reps or row.reps, rig, **row.arguments)
    except KeyboardInterrupt:
        teller.result["failure"] = INTERRUPTED
    except NotAvailable as error:
        teller.result["not_available"] = str(error)
    except (RowFailed, NotRunning, LoadError) as error:
        teller.result["failure"] = str(error)
    except Exception as error:
        teller.result["failure"] = f"{type(error).__name__}: {error}"
        if options.verbose:
            traceback.print_exc()
    told = {"seconds": time.monotonic() - began, "load_before": load_before, "blocks": rig.told()}
    result = {**teller.result, **told}
    progress.line(f"{report.row_line(row.name, result)} (load before: {load_before[0]:.1f})")
    return result


def _is_chosen(row: Row, options: argparse.Namespace) -> bool:
    if options.rows:
        return row.name in options.rows
    return row.name not in options.skip and (options.full or not row.is_full)


def _options() -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return [one for one in text.split(",") if one]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the long rows too")
    parser.add_argument("--rows", type=listed, help=f"only these, of: {', '.join(ROWS)}")
    parser.add_argument("--skip", type=listed, default=[], help="not these")
    parser.add_argument("--reps", type=int, help="repetitions of each row, in place of its own number")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a block (5)")
    parser.add_argument("--results", type=Path, default=place.RESULTS, help="folder to write into")
    parser.add_argument("--verbose", action="store_true", help="each repetition as a line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
