"""`python -m eagleray.workflows.resume RUN`: go on with a stopped or failed run, as a Ray job's driver."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eagleray.workflows.stopping import stoppable


@stoppable
def main(argv: Sequence[str] | None = None) -> int:
    """Go on with the run named in `argv`; returns the exit code as `train` does."""
    import argparse

    from eagleray.workflows.run import Run, drive, process_started_at

    parser = argparse.ArgumentParser(prog="resume", description="Go on with RUN from its newest checkpoint.")
    parser.add_argument("run", help="run id, the name of its folder in storage")
    arguments = parser.parse_args(argv)
    return drive(lambda: Run.open(arguments.run), process_started_at())


if __name__ == "__main__":
    sys.exit(main())
