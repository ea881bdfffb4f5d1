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
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import place  # first: it says where eagleray is
from progress import Progress
from rows import ROWS, Row, stages

if TYPE_CHECKING:
    pass


def main() -> int:
    """Measure what the options say; returns 0 also where aims are missed: they are a table, not a test."""
    options = _options()
    if options.row is not None:
        import children

        return children.main(options.row, options.reps)
    unknown = set(options.rows or []) - set(ROWS)
    if unknown:
        print(f"--rows: no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, signal.default_int_handler)
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    import children
    import report

    chosen = [row for row in ROWS.values() if _is_chosen(row, options)]
    rows = report.read(options.results) if options.rows else {}
    began = time.time()
    about = {
        "started": began,
        "options": {name: str(value) for name, value in vars(options).items() if name != "results"},
    }
    progress, code = Progress(is_verbose=options.verbose), 0
    with place.home() as home:
        cluster = place.Cluster()
        try:
            for together in stages(chosen):
                if not any(row.has_cluster for row in together):
                    cluster.down()  # what idles there takes a part of two cores
                env = cluster.environment() if any(row.has_cluster for row in together) else dict(os.environ)
                with ThreadPoolExecutor(len(together)) as pool:
                    runs = {
                        row.name: pool.submit(_run, row, options, env, home, progress) for row in together
                    }
                    try:
                        wait(runs.values())
                    except KeyboardInterrupt:  # rows are in sessions of their own, and hear nothing of it
                        children.stop_all()
                        code = 130
                    rows |= {name: run.result() for name, run in runs.items()}
                report.save(rows, about, options.results)
                if code:
                    break
        except KeyboardInterrupt:
            code = 130
        finally:
            progress.close()
            cluster.down()
    about["seconds"] = time.time() - began
    report.save(rows, about, options.results)
    progress.line(f"\n{report.table(rows)}")
    if code:
        progress.line("\ninterrupted; what was measured is kept")
    where = f"{options.results}/elastic.json, elastic.png"
    progress.line(f"\n{about['seconds'] / 60:.1f} minutes; {where}")
    return code


def _run(
    row: Row, options: argparse.Namespace, env: dict[str, str], home: Path, progress: Progress
) -> dict[str, Any]:
    """One row's result, said in a line."""
    import children
    import report

    progress.note(f"{row.name}: starting")
    load, began = os.getloadavg(), time.time()
    result = children.run(
        row,
        options.reps or row.reps,
        env,
        home / f"{row.name}.log",
        lambda text: progress.note(f"{row.name}: {text}"),
    )
    progress.line(f"{report.row_line(row.name, result)} (load before: {load[0]:.1f})")
    return {**result, "started": began, "load_before": load}


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
    parser.add_argument("--results", type=Path, default=place.RESULTS, help="folder to write into")
    parser.add_argument("--verbose", action="store_true", help="each repetition as a line")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
