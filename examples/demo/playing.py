"""A demo from its start to its exit code, whatever happens in between."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from common import BIN, CLUSTER, DemoError, Tally, console
from ending import closing, is_running, left_up, take_down


def perform(play: Callable[[Tally], None], last_step: int, goal_s: float | None = None) -> int:
    """Play the demo's steps, and end what they started; returns the exit code.

    Args:
        play: the steps, all but the last.
        last_step: number of the step that ends the cluster.
        goal_s: how long all of it may take, if there is a goal; the table says it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if is_running():
        console.print(f"Cluster {CLUSTER!r} runs already; end it first: {BIN}/eagleray down --name {CLUSTER}")
        return 1
    tally = Tally(keeps_cluster=os.environ.get("KEEP", "") not in ("", "0"))
    code, started = 1, time.monotonic()
    try:
        play(tally)
        goal = "" if goal_s is None else f" (goal {goal_s:.0f} s)"
        tally.add("whole demo", f"{time.monotonic() - started:.0f} s{goal}")
        code = 0
    except DemoError as error:
        console.print(f"\n[bold red]The demo failed:[/] {error}")
    except KeyboardInterrupt:
        console.print("\n[bold]Interrupted.[/]")
        code = 130
    finally:
        if tally.keeps_cluster and code == 0:
            left_up()
        else:
            code = take_down(tally, last_step) or code
    if code == 0:
        closing(tally)
    return code
