"""Elasticity: how soon runs resize, recover and give way, against stock Ray: `make bench-elastic`.

    python benchmarks/elastic                       all rows but the long ones, in at most 25 minutes
    python benchmarks/elastic --full                those too: random schedules, a fault storm (45 minutes more)
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
from pathlib import Path

import place  # first: it says where eagleray is
from rows import ROWS


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    import children
    import report

    chosen = [row for row in ROWS.values() if _is_chosen(row, options)]
    rows = report.read(options.results) if options.rows else {}
    began = time.time()
    about = {"started": began, "options": {name: str(value) for name, value in vars(options).items()}}
    progress, code = report.Progress(), 0
    with place.home() as home:
        cluster = place.Cluster()
        try:
            for row in chosen:
                progress.note(f"{row.name}: starting")
                if not row.has_cluster:
                    cluster.down()  # what idles there takes a part of two cores
                env = cluster.environment() if row.has_cluster else dict(os.environ)
                load = os.getloadavg()
                result = children.run(
                    row,
                    options.reps or row.reps,
                    env,
                    home / f"{row.name}.log",
                    lambda text, name=row.name: progress.note(f"{name}: {text}"),
                )
                rows[row.name] = {**result, "started": time.time() - result["seconds"], "load_before": load}
                progress.line(f"{report.row_line(row.name, result)} (load before: {load[0]:.1f})")
                report.save(rows, about, options.results)
        except KeyboardInterrupt:
            progress.line("interrupted; what was measured is kept")
            code = 130
        finally:
            progress.close()
            cluster.down()
    about["seconds"] = time.time() - began
    report.save(rows, about, options.results)
    progress.line(f"\n{report.table(rows)}")
    where = f"{options.results}/elastic.json, elastic.png"
    progress.line(f"\n{about['seconds'] / 60:.1f} minutes; {where}")
    return code


def _is_chosen(row: object, options: argparse.Namespace) -> bool:
    name, is_full = row.name, row.is_full  # type: ignore[attr-defined]
    if options.rows:
        return name in options.rows
    return name not in options.skip and (options.full or not is_full)


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
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
