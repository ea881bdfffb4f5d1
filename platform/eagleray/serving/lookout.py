"""`Lookout`: which of the gateways that are silent have ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

_LOOK_S = 1.0
"""Between two looks."""
_log = logging.getLogger(__name__)


class Lookout:
    """For one event loop.

    Args:
        is_gone: Whether the gateway of that name has ended, as far as can be known; it may block.
        forget: Called with the name of each that has. One that is only cut off is left as it is.
    """

    def __init__(
        self,
        is_gone: Callable[[str], bool],
        forget: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_gone, self._forget, self._clock = is_gone, forget, clock
        self._looked_s = 0.0
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_looking(self) -> bool:
        """Whether it is being asked."""
        return self._looking is not None

    def look(self, silent: Collection[str]) -> None:
        """Ask in a thread, unless that is being done, or was less than a second ago."""
        now_s = self._clock()
        if silent and not self.is_looking and now_s - self._looked_s > _LOOK_S:
            self._looked_s = now_s
            self._looking = asyncio.get_running_loop().create_task(self._look(tuple(silent)))

    async def _look(self, names: Collection[str]) -> None:
        try:
            for name in names:
                try:
                    if await asyncio.to_thread(self._is_gone, name):
                        self._forget(name)
                except Exception as error:  # it is asked again
                    _log.warning("whether the silent gateway %s lives is not known: %s", name, error)
        finally:
            self._looking = None
