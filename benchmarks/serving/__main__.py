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
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import place  # first: it says where eagleray is
from kit import frame
from rows import ROWS, Row

INTERRUPTED = "interrupted"

if TYPE_CHECKING:
    from rig import Rig


def main() -> int:
    """Measure what the options say; returns 0 also where aims are missed: they are a table, not a test."""
    options = _options()
    if (chosen := frame.chosen(ROWS, options)) is None:
        return 2
    frame.interruptible()
    return _measure(chosen, options)


def _measure(chosen: list[Row], options: argparse.Namespace) -> int:
    import load
    import report
    from rig import Rig

    from eagleray.cluster import processes

    try:
        load.program()
    except load.LoadError as error:
        print(error, file=sys.stderr)
        return 2
    session = frame.Session(options, report.NAME, report)
    with place.home() as home:
        rig = Rig(home, block_s=options.seconds)
        try:
            for row in chosen:
                session.keep({row.name: _run(row, session, rig)})
                if session.rows[row.name]["failure"] == INTERRUPTED:
                    session.is_interrupted = True
                    break
        finally:
            session.progress.close()
            with processes.undisturbed():
                rig.close()
    return session.end([report.table, report.peers_table, report.profile_table, report.disturbances])


def _run(row: Row, session: frame.Session, rig: Rig) -> dict[str, Any]:
    """One row's result, said in a line; `failure` is INTERRUPTED where it was."""
    from kit.results import NotAvailable, RowFailed, Teller
    from load import LoadError
    from running import NotRunning

    teller = Teller(lambda text: session.progress.note(f"{row.name}: {text}"))
    teller.note("starting")
    load_before, began = os.getloadavg(), time.monotonic()
    module, _, function = row.function.partition(":")
    try:
        work = getattr(importlib.import_module(module), function)
        work(teller, session.options.reps or row.reps, rig, **row.arguments)
    except KeyboardInterrupt:
        teller.result["failure"] = INTERRUPTED
    except NotAvailable as error:
        teller.result["not_available"] = str(error)
    except (RowFailed, NotRunning, LoadError) as error:
        teller.result["failure"] = str(error)
    except Exception as error:
        teller.result["failure"] = f"{type(error).__name__}: {error}"
        if session.options.verbose:
            traceback.print_exc()
    told = {"seconds": time.monotonic() - began, "load_before": load_before, "blocks": rig.told()}
    result = {**teller.result, **told}
    session.over(row.name, result)
    return result


def _options() -> argparse.Namespace:
    parser = frame.rows_parser(__doc__, ROWS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a block (5)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
