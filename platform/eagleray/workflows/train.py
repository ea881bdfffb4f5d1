"""`python -m eagleray.workflows.train SPEC [--set a.b=c]`: a training run, as the driver of a Ray job."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eagleray.workflows.stopping import stoppable


@stoppable
def main(argv: Sequence[str] | None = None) -> int:
    """Run the spec named in `argv`; returns the exit code (0 done, 1 failed, 2 bad input, 3 no capacity)."""
    import argparse

    from eagleray.specs import TrainSpec, load
    from eagleray.workflows.run import Run, drive, process_started_at

    parser = argparse.ArgumentParser(prog="train", description="Train what SPEC says, on this Ray cluster.")
    parser.add_argument("spec", help="TOML file, for instance examples/train/digits.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    arguments = parser.parse_args(argv)
    return drive(
        lambda: Run.create(load(TrainSpec, arguments.spec, arguments.overrides)), process_started_at()
    )


if __name__ == "__main__":
    sys.exit(main())
