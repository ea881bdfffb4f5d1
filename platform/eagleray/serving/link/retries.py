"""Second tries: which request may have one, and how many there may be in all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from eagleray.serving.link.answers import Answer, OnAnswer
from eagleray.serving.link.client import Link
from eagleray.serving.link.frames import Kind

if TYPE_CHECKING:
    from eagleray.serving.link.pool import Pool


class RetryBudget:
    """Second tries, as a share of first ones: when everything breaks, they must not double the load.

    Args:
        share: Second tries for each first one.
        most: So many may be saved up, for the moment when a replica dies with its requests.
        start: So many there are before the first request.
    """

    def __init__(self, share: float = 0.1, *, most: float = 100.0, start: float = 10.0) -> None:
        self._share, self._most, self._left = share, most, start

    def earn(self) -> None:
        """A first try."""
        self._left = min(self._most, self._left + self._share)

    def spend(self) -> bool:
        """Whether there may be a second one, which is then counted."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Request:
    """One request of a pool, whose callback is called exactly once unless it is cancelled."""

    __slots__ = ("_again", "_deadline_s", "_first", "_is_safe", "_link", "_on_answer", "_pool", "_stream")

    def __init__(
        self,
        pool: Pool,
        on_answer: OnAnswer,
        deadline_ms: int,
        again: Callable[[Link, int, OnAnswer], int],
        *,
        is_safe: bool,
    ) -> None:
        self._pool, self._on_answer, self._again, self._is_safe = pool, on_answer, again, is_safe
        self._deadline_s = time.monotonic() + deadline_ms / 1000 if deadline_ms else 0.0
        self._link: Link | None = None
        self._stream = 0
        self._first: Answer | None = None
        """Of the first try, where there was a second one, which may read its slot."""

    @property
    def link(self) -> Link | None:
        """Where it is now; None when it is over."""
        return self._link

    @property
    def was_lost(self) -> bool:
        """Whether the replica of its first try was lost over it, and it has had its second one."""
        return self._first is not None and self._first.kind == Kind.LOST

    def cancel(self) -> None:
        """Nobody waits for it any more: its callbacks are not called."""
        if (link := self._link) is not None:
            self._link = None
            link.cancel(self._stream)
            self._release()

    def begun(self, link: Link, stream: int) -> None:
        """The pool's: this is its first try."""
        self._link, self._stream = link, stream

    def answered(self, answer: Answer) -> None:
        """The link's."""
        link, self._link = self._link, None
        if link is not None and self._first is None and (other := self._other(link, answer)) is not None:
            self._first = answer
            self._link = other
            self._stream = self._again(other, self._left_ms(), self.answered)
            return
        if self._first is not None and answer.slot is None and answer.is_for_another:
            # The slot of the first try has what a third reads: it is kept for as long as this answer.
            answer = answer._replace(slot=self._first.slot)
            self._first = self._first._replace(slot=None)
        try:
            self._on_answer(answer)
        finally:
            self._release()

    def is_begun_to_answer(self) -> None:
        """A piece came: from here on a second try would say it twice."""
        self._is_safe = False

    def _other(self, link: Link, answer: Answer) -> Link | None:
        """The link for a second try, where there may be one."""
        is_safe = answer.kind == Kind.GOAWAY or (answer.kind == Kind.LOST and self._is_safe)
        if not is_safe or (self._deadline_s and time.monotonic() >= self._deadline_s):
            return None
        other = self._pool.choose(besides=link)
        return other if other is not None and self._pool.budget.spend() else None

    def _left_ms(self) -> int:
        if not self._deadline_s:
            return 0
        return max(1, round((self._deadline_s - time.monotonic()) * 1000))

    def _release(self) -> None:
        if self._first is not None:
            self._first.release()
        self._again, self._on_answer = _no_second, _nobody  # both may lead back here: a circle


def _no_second(_link: Link, _left_ms: int, _on_answer: OnAnswer) -> int:
    """For a request that is over."""
    raise AssertionError("a request that is over has no second try")


def _nobody(_answer: Answer) -> None:
    """Takes what comes for a request that is over."""
