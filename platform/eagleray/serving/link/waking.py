"""`Awake`: a loop that looks on for what comes within microseconds, instead of going to sleep for it.

To sleep and to be woken takes some tens of microseconds of each hop between two processes, more in a virtual
machine: a large part of what a small request takes. As an adaptive mutex does, who waits here looks on only
where what he waits for has come soon of late, and not for long.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

LONGEST_S = 250e-6
"""What mostly takes longer is waited for asleep, and so is what does not come within twice the usual time."""
_LATE_S = 4 * LONGEST_S
"""After a pause of any length a few that come soon are enough to be awake again."""
_WEIGHT = 1 / 8
"""Of the last one in the usual time."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


class Awake:
    """For one loop.

    Args:
        loop: Whose.
        is_expected: Whether something is still waited for.
        is_allowed: Whether it may look on at all; as `has_spare_cpus` where it is not given.
        clock: Seconds, monotonic.
    """

    __slots__ = (
        *("_call_soon", "_clock", "_is_awake", "_is_expected", "_longest_s", "_since_s", "_until_s"),
        "usual_s",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_expected: Callable[[], object],
        *,
        is_allowed: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call_soon, self._is_expected, self._clock = loop.call_soon, is_expected, clock
        may = has_spare_cpus() if is_allowed is None else is_allowed
        self._longest_s = LONGEST_S if may else 0.0
        self._since_s = self._until_s = 0.0
        self._is_awake = False
        self.usual_s = _LATE_S
        """From `expect` to `came`, of late."""

    def expect(self) -> None:
        """Something will come that did not before now: look on for it, where that has been worth it."""
        if self._since_s:
            return
        self._since_s = self._clock()
        if self.usual_s < self._longest_s:
            self._until_s = self._since_s + 2 * self.usual_s
            if not self._is_awake:
                self._is_awake = True
                self._call_soon(self._look)

    def came(self) -> None:
        """It is there."""
        if self._since_s:
            waited_s = min(_LATE_S, self._clock() - self._since_s)
            self.usual_s += _WEIGHT * (waited_s - self.usual_s)
            self._since_s = 0.0

    def _look(self) -> None:
        """Have the loop turn once more, without going to sleep."""
        if self._since_s and self._clock() < self._until_s and self._is_expected():
            self._call_soon(self._look)
        else:
            self._is_awake = False


def has_spare_cpus() -> bool:
    """Whether this process may keep a CPU busy for a moment, and leave others theirs."""
    return min(len(os.sched_getaffinity(0)), _quota()) >= 2


def _quota() -> float:
    """CPUs that the container may use (cgroup v2); infinite where nothing says so."""
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
