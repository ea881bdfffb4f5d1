"""How a run or a search ended, for its report."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from eagleray.errors import EaglerayError


@contextmanager
def reporting(report: dict[str, Any], *, unexpected: Literal["FAILED", "STOPPED"]) -> Iterator[None]:
    """`report` has status, error and seconds of the block afterwards; what the block raises goes on.

    From its end on SIGTERM is ignored: how it ended is known, and that is told to the end.

    Args:
        report: Has `started_at`.
        unexpected: The status after an error that is not ours.
    """
    report["status"] = "RUNNING"
    try:
        yield
        report["status"] = "FINISHED"
    except KeyboardInterrupt:
        report |= {"status": "STOPPED", "error": "stopped by a signal"}
        raise
    except EaglerayError as error:
        report |= {"status": "FAILED", "error": str(error)}
        raise
    except BaseException as error:
        report |= {"status": unexpected, "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report["seconds"] = time.time() - report["started_at"]
