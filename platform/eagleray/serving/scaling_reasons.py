"""Why each service has the replicas that it has: in the log of Serve's controller, and for who asks there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

_SILENT_S = 60.0
"""A service of which Serve has not asked for so long is gone."""
_log = logging.getLogger("ray.serve")
"""Its controller's own log file takes it."""


@dataclass
class Decision:
    """The last change of what a service wants."""

    wanted: int
    """Replicas."""
    runs: int
    """Those of them that are granted: what Serve sees to."""
    reason: str
    """In words; empty where nothing has changed since Serve's controller started."""
    at: float
    """When it was decided, in seconds since the epoch."""


class Reasons:
    """Of all services of one Serve; for its controller's event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, Decision]] = {}
        """By application: when it was last heard of, and what was decided."""

    def say(self, app: str, before: int, wanted: int, runs: int, reason: str) -> None:
        """So many replicas are wanted from now on, so many may run; logged where either changes."""
        now_s = self._clock()
        _, last = self._last.get(app, (now_s, None))
        if last is None:
            last = Decision(before, min(before, runs), "", now_s)
        if wanted != before:
            _log.info("%s: wants %d replicas, before %d: %s", app, wanted, before, reason)
            last = Decision(wanted, last.runs, reason, now_s)
        if runs < wanted and runs != last.runs:
            _log.info("%s: runs %d of the %d: the ledger grants no more now", app, runs, wanted)
        last.wanted, last.runs = wanted, runs
        self._last[app] = now_s, last

    def decisions(self) -> dict[str, dict[str, Any]]:
        """The last decision on each application, as plain values."""
        now_s = self._clock()
        self._last = {app: found for app, found in self._last.items() if now_s - found[0] < _SILENT_S}
        return {app: asdict(last) for app, (_, last) in self._last.items()}


_reasons = Reasons()
say = _reasons.say


def decisions(_actor: object = None) -> dict[str, dict[str, Any]]:
    """As `Reasons.decisions`, of the Serve whose controller this process is; `_actor`: that controller."""
    return _reasons.decisions()
