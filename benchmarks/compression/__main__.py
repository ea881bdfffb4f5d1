"""Gradient compression against DDP dense and torch's own hooks: `make bench-compression` (needs root).

    python benchmarks/compression                     the whole, in at most 25 minutes
    python benchmarks/compression --quick             a look, 2 to 3 minutes
    python benchmarks/compression --links 1000 --n 4 --kinds int8,topk
    python benchmarks/compression --convergence       part two: trainings to their end (no root)

Prints markdown tables; writes compression.json and compression.png into benchmarks/results.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

import arithmetic
import report
import rig  # first: it says where eagleray is
from cells import COMPUTE, DENSE, Cell, Measured, measure, measure_drawn
from kit import frame
from kit.progress import Progress
from schemes import Scheme, all_schemes, kinds

WEIGHTS = {"unshaped": 1.0, "1 Gbit/s": 1.3, "100 Mbit/s": 2.6}
DRAWN_WEIGHT = 0.7
MINUTES, QUICK_MINUTES = 23.0, 2.2
"""Of measuring; starting and drawing come on top."""


def main() -> int:
    """Measure what the options say; returns 0 also where aims are missed: they are a table, not a test."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not (
        frame.is_known("--kinds", options.kinds, "kind", kinds())
        and frame.is_known("--tasks", options.tasks, "task", ("char", "cnn"))
    ):
        return 2
    if options.convergence:
        import convergence

        return convergence.main(options)
    if (lacking := rig.missing()) is not None:
        print(lacking, file=sys.stderr)
        return 2
    progress = Progress()
    found: list[Measured] = []
    about = frame.about(options)
    progress.note("compiling the codecs, where they are not")
    if (lacking := rig.build_kernels()) is not None:
        progress.line(lacking)
    try:
        for measured in _measure_all(options, progress):
            found.append(measured)
            progress.line(report.table(measured))
            report.save(found, about, options.results)
    except KeyboardInterrupt:
        progress.line(frame.KEPT)
    finally:
        progress.close()
    about["seconds"] = time.time() - about["started"]
    report.save(found, about, options.results)
    for text in (report.auto_table(found), report.targets_table(report.targets(found))):
        if text is not None:
            progress.line(text)
    progress.line(f"\n{frame.ended(about, options.results, report.NAME)}")
    return 0 if found else frame.INTERRUPTED


def _measure_all(options: argparse.Namespace, progress: Progress):
    """Yields each cell's figures; from fast links to slow: what cannot run is known before time is dear."""
    chosen = _chosen(options)
    cells = [Cell(n, *_link(link)) for n in options.n for link in options.links]
    drawn = []
    if any(one.name == "auto" for one in chosen):
        rates = arithmetic.draw_rates(options.drawn, options.seed)
        sizes = sorted(options.n, reverse=True)
        drawn = [Cell(sizes[i % len(sizes)], *_link(f"{rate:g}")) for i, rate in enumerate(rates)]
    cells.sort(key=lambda cell: (cell.n, -(cell.rate_mbit or 1e9)))
    drawn.sort(key=lambda cell: cell.n)
    parts = [(cell, False) for cell in cells] + [(cell, True) for cell in drawn]
    weights = [
        DRAWN_WEIGHT if is_drawn else WEIGHTS.get(cell.link, 1.5) * (0.5 + cell.n / 4)
        for cell, is_drawn in parts
    ]
    budget = arithmetic.Budget(options.minutes * 60, weights)
    failed: dict[int, dict[str, str]] = {n: {} for n in options.n}
    for cell, is_drawn in parts:
        began = time.monotonic()
        progress.note(f"{cell}: starting workers")
        with rig.hosts(cell.n) as hosts:
            for host in hosts:
                rig.shape(host, cell.rate_mbit)
            crew = rig.Crew(hosts)
            try:
                if is_drawn:
                    yield measure_drawn(crew, cell, chosen, budget.next_s(), progress.note)
                else:
                    yield measure(crew, cell, chosen, budget.next_s(), failed[cell.n], progress.note)
            except rig.SchemeFailed as error:
                progress.line(f"{cell}: given up: {error}")
            finally:
                crew.close()
        budget.spent(time.monotonic() - began)


def _chosen(options: argparse.Namespace) -> list[Scheme]:
    schemes = list(all_schemes().values())
    if options.kinds is None:
        return schemes
    wanted = {DENSE, COMPUTE, *options.kinds}
    return [one for one in schemes if one.name in wanted or (options.torch_hooks and one.family == "torch")]


def _link(text: str) -> tuple[str, float | None]:
    """Name and rate in Mbit/s of a link given as Mbit/s or `unshaped`."""
    if text == "unshaped":
        return text, None
    rate = float(text)
    return (f"{rate / 1000:g} Gbit/s" if rate >= 1000 else f"{rate:g} Mbit/s"), rate


def _options() -> argparse.Namespace:
    listed = frame.listed
    parser = frame.parser(__doc__)
    parser.add_argument("--links", type=listed(), help="Mbit/s or unshaped, with commas (unshaped,1000,100)")
    parser.add_argument("--n", type=listed(int), help="numbers of workers (2,4)")
    parser.add_argument("--kinds", type=listed(), help="only these of ours, without torch's hooks")
    parser.add_argument("--torch-hooks", action="store_true", help="with --kinds: torch's hooks too")
    parser.add_argument("--quick", action="store_true", help="n = 4 at 1 Gbit/s, 2 to 3 minutes")
    parser.add_argument("--minutes", type=float, help=f"of measuring ({MINUTES:g})")
    parser.add_argument("--drawn", type=int, help="links drawn by seed, for auto (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn links and the trainings")
    parser.add_argument("--convergence", action="store_true", help="part two: trainings to their end")
    parser.add_argument(
        "--tasks", type=listed(), default=["char", "cnn"], help="with --convergence (char,cnn)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="with --convergence (5)")
    parser.add_argument("--steps", type=int, default=300, help="with --convergence (300)")
    options = parser.parse_args()
    if options.minutes is None:
        options.minutes = QUICK_MINUTES if options.quick else MINUTES
    options.n = options.n or ([4] if options.quick else [2, 4])
    options.links = options.links or (["1000"] if options.quick else ["unshaped", "1000", "100"])
    if options.drawn is None:
        options.drawn = 0 if options.quick else 4
    return options


if __name__ == "__main__":
    sys.exit(main())
