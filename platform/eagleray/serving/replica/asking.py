"""A batcher for coroutines: awaits one answer, and takes the request back where nobody waits any more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from eagleray.serving.replica.batcher import NEVER, Answer, Batcher, Request
from eagleray.serving.replica.joining import Inputs, Outputs


class Asking:
    """From any event loop; what was asked in one turn of it goes to the batcher together."""

    def __init__(self, batcher: Batcher, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Args: call_soon: Has the batcher's owner call something; may be called from any thread."""
        self._batcher, self._call_soon = batcher, call_soon
        self._new: deque[Request] = deque()
        self._is_called = False

    async def submit(self, inputs: Inputs, *, arrived_s: float, deadline_s: float = NEVER) -> Outputs:
        """The outputs for inputs that were checked.

        Raises:
            Expired: the deadline passed before they were computed.
            Exception: what the model raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outputs] = loop.create_future()

        def on_answer(answer: Answer) -> None:
            loop.call_soon_threadsafe(_settle, future, answer)

        request = Request(inputs, on_answer, arrived_s=arrived_s, deadline_s=deadline_s)
        self._new.append(request)
        if not self._is_called:
            self._is_called = True
            self._call_soon(self._enter)
        try:
            return await future
        except asyncio.CancelledError:
            self._call_soon(lambda: self._batcher.cancel(request))
            raise

    def _enter(self) -> None:
        self._is_called = False
        while self._new:
            self._batcher.submit(self._new.popleft())
        self._batcher.flush()


def _settle(future: asyncio.Future[Outputs], answer: Answer) -> None:
    if future.done():
        return
    if answer.outputs is not None:
        future.set_result(answer.outputs)
    elif answer.error is not None:
        future.set_exception(answer.error)
