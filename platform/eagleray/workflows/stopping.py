"""SIGTERM, by which a job is stopped, as an exception; light, so that a driver hears it early."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import NoReturn, ParamSpec

P = ParamSpec("P")


class Stopped(KeyboardInterrupt):
    """The job was asked to stop.

    A KeyboardInterrupt, because `ray.get` hands on no other exception of a signal handler: any other is lost
    and the run goes on, or becomes a SystemError (Ray 2.60, `check_signals`). It may come out as a plain one.
    """


def stop_on_sigterm() -> None:
    """Raise Stopped in the main thread when SIGTERM comes."""

    def stop(*_: object) -> NoReturn:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)


def stop_this_process() -> None:
    """Have Stopped raised in the main thread, as if the job was asked to stop; from any thread."""
    os.kill(os.getpid(), signal.SIGTERM)


def stoppable(main: Callable[P, int]) -> Callable[P, int]:
    """A driver's main that says "stopped" where it was stopped, or interrupted, before it had made a run."""

    @functools.wraps(main)
    def stopped_in_words(*args: P.args, **kwargs: P.kwargs) -> int:
        stop_on_sigterm()
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("stopped", flush=True)
            return 1

    return stopped_in_words
