"""`LoopThread`: a thread with an event loop of its own, so that nothing else of the process delays it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

Result = TypeVar("Result")
_BEAT_S = 0.5


class LoopThread:
    """Runs from the start to `stop`."""

    def __init__(self, name: str) -> None:
        self._beat_s = time.monotonic()
        self._loop: asyncio.AbstractEventLoop
        self._is_to_stop: asyncio.Event
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Have the loop run it; from any other thread. Raises: RuntimeError when it has stopped."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def is_alive(self) -> bool:
        """Whether it has not stopped."""
        return self._thread.is_alive()

    @property
    def silent_s(self) -> float:
        """Seconds since the loop last turned, to half a second."""
        return time.monotonic() - self._beat_s

    def stop(self, timeout_s: float = 5.0) -> None:
        """Cancel what runs in the loop, and end the thread; from any other thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._is_to_stop.set)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_to_stop = asyncio.Event()
        self._is_ready.set()
        while not self._is_to_stop.is_set():
            self._beat_s = time.monotonic()
            try:
                async with asyncio.timeout(_BEAT_S):
                    await self._is_to_stop.wait()
            except TimeoutError:
                continue
