"""Elasticity: how soon runs resize, recover and give way, against stock Ray: `make bench-elastic`.

    python benchmarks/elastic                       all rows but the long ones, in about 25 minutes
    python benchmarks/elastic --full                those too: random schedules, a fault storm (45 min more)
    python benchmarks/elastic --rows worker,node    only these; the others' last results stay
    python benchmarks/elastic --reps 2              fewer repetitions: a look

Each row runs in a process of its own, as the driver of real runs on a real local cluster. Prints the table in
markdown; writes elastic.json after each row, and elastic.png, into benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import place  # first: it says where eagleray is
from kit import frame
from rows import ROWS, Row, stages


def main() -> int:
    """Measure what the options say; returns 0 also where aims are missed: they are a table, not a test."""
    options = _options()
    if options.row is not None:
        import children

        return children.main(options.row, options.reps)
    if (chosen := frame.chosen(ROWS, options)) is None:
        return 2
    frame.interruptible()
    return _measure(chosen, options)


def _measure(chosen: list[Row], options: argparse.Namespace) -> int:
    import children
    import report

    session = frame.Session(options, report.NAME, report)
    with place.home() as home:
        cluster = place.Cluster()
        try:
            for together in stages(chosen):
                if not any(row.has_cluster for row in together):
                    cluster.down()  # what idles there takes a part of two cores
                env = cluster.environment() if any(row.has_cluster for row in together) else dict(os.environ)
                with ThreadPoolExecutor(len(together)) as pool:
                    runs = {row.name: pool.submit(_run, row, session, env, home) for row in together}
                    try:
                        wait(runs.values())
                    except KeyboardInterrupt:  # rows are in sessions of their own, and hear nothing of it
                        children.stop_all()
                        session.is_interrupted = True
                    session.keep({name: run.result() for name, run in runs.items()})
                if session.is_interrupted:
                    break
        except KeyboardInterrupt:
            session.is_interrupted = True
        finally:
            session.progress.close()
            cluster.down()
    return session.end([report.table])


def _run(row: Row, session: frame.Session, env: dict[str, str], home: Path) -> dict[str, Any]:
    """One row's result, said in a line."""
    import children

    note = session.progress.note
    note(f"{row.name}: starting")
    load, began = os.getloadavg(), time.time()
    result = children.run(
        row,
        session.options.reps or row.reps,
        env,
        home / f"{row.name}.log",
        lambda text: note(f"{row.name}: {text}"),
    )
    result |= {"started": began, "load_before": load}
    session.over(row.name, result)
    return result


def _options() -> argparse.Namespace:
    parser = frame.rows_parser(__doc__, ROWS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
