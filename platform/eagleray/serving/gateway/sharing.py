"""`Sharing`: has one gateway go by its part of every key's limits, where there are others.

The questions to the accountant are asked by a thread of their own: the gateway's loop only hands over what
was asked for here, and takes what is lent, some microseconds ten times a second. Where there is one gateway,
or no key has a limit, nothing is asked.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from eagleray.serving.accounting import grant_of, held_to_json
from eagleray.serving.admission.door import Admission
from eagleray.serving.admission.shares import GROW_S, LEASE_S, PERIOD_S, Lease

Result = TypeVar("Result")
Held = Mapping[str, Any]
_IN_LOOP_S = 5.0
_END_S = 2.0
_log = logging.getLogger(__name__)


class Sharing:
    """For one event loop, in which every method is called.

    Args:
        admission: Goes by what is lent.
        ask: Asks the accountant: what this gateway goes by, and by key what was asked for, to a grant, all
            plain values (`accounting.py`). It blocks, for `LEASE_S` at most, and raises where none answers.
    """

    def __init__(
        self,
        admission: Admission,
        ask: Callable[[Held, Mapping[str, float]], Mapping[str, Any]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission, self._ask, self._clock = admission, ask, clock
        self._num_gateways = 0
        self._has_limits = False
        self._is_needed, self._is_over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def follow(self, num_gateways: int) -> None:
        """There are so many gateways, and the admission has its keys."""
        before, self._num_gateways = self._num_gateways, num_gateways
        self._has_limits = self._admission.has_limits
        if num_gateways > 1:
            if (lease := self._admission.lease) is None:
                # One that was alone until now goes by its part at once; one that has just come among others
                # waits for what they leave.
                since_s = self._clock() - (GROW_S + LEASE_S if before == 1 else 0.0)
                self._admission.go_by(Lease(num_gateways, since_s))
            else:
                lease.expect(num_gateways)
        self._look()

    async def close(self) -> None:
        """Ask no more."""
        self._is_over.set()
        self._is_needed.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _END_S)

    def _look(self) -> None:
        """Have the thread ask where there is a reason to."""
        lease, now_s = self._admission.lease, self._clock()
        if lease is not None and self._num_gateways == 1 and (lease.is_whole(now_s) or not self._has_limits):
            # Before, those that are on their way out may still go by their parts.
            self._admission.go_by(None)
            lease = None
        if lease is None or not self._has_limits:
            self._is_needed.clear()
            return
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="sharing", daemon=True)
            self._thread.start()
        self._is_needed.set()

    # In the thread.

    def _run(self) -> None:
        trouble, next_s = "", time.monotonic()
        while True:
            self._is_needed.wait()
            next_s = max(next_s + PERIOD_S, time.monotonic())
            if self._is_over.wait(max(0.0, next_s - time.monotonic())):
                break
            try:
                question = self._in_loop(self._question)
                answer, said = None, ""
                try:
                    answer = self._ask(*question[1:]) if question else None
                except Exception as error:  # it goes on by what it has, then by 1/N
                    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                if question:
                    self._in_loop(lambda asked_s=question[0], answer=answer: self._take(asked_s, answer))
            except (RuntimeError, TimeoutError):  # the loop has ended, or hangs: others say that
                continue
            if said and said != trouble:
                _log.warning("the accountant of the keys' limits does not answer: %s", said)
            trouble = said

    def _in_loop(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the gateway's loop."""
        done: Future[Result] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(run)
        return done.result(_IN_LOOP_S)

    # In the loop again.

    def _question(self) -> tuple[float, Held, Mapping[str, float]] | None:
        lease, now_s = self._admission.lease, self._clock()
        if lease is None:
            return None
        return now_s, held_to_json(lease.held(now_s)), self._admission.demands()

    def _take(self, asked_s: float, answer: Mapping[str, Any] | None) -> None:
        lease = self._admission.lease
        if lease is None:
            return
        if answer is not None and self._clock() - asked_s <= LEASE_S:
            lease.take(grant_of(answer), asked_s)
        self._admission.apply_shares()
        self._look()
