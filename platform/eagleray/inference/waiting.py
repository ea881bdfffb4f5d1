"""Who is next: a bounded queue that is fair between keys by the tokens they were given."""

from __future__ import annotations

import threading
from collections import deque
from itertools import count
from typing import Generic, NamedTuple, TypeVar

from eagleray.errors import EaglerayError

_MAX_KEYS = 4096
"""Keys whose tokens are remembered; of more, those that asked longest ago start anew."""

T = TypeVar("T")


class QueueFull(EaglerayError):
    """As many requests wait as may; nothing was taken. Trying again later may help."""


class QueueClosed(EaglerayError):
    """No request is taken any more."""


class _Entry(NamedTuple, Generic[T]):
    number: int
    """Among all that came."""
    num_tokens: int
    item: T


class FairQueue(Generic[T]):
    """The next is of the key that had the fewest tokens, and of equal ones of that which has waited longest.

    A key that comes, or comes back, starts where the last one taken stood: who did not ask has saved nothing
    up, and who was ahead stays so. All methods may be called from any thread.

    Source: Goyal et al. 1996 (Start-time Fair Queuing), section 2, with equal weights.
    """

    def __init__(self, max_waiting: int):
        self.max_waiting = max_waiting
        self._waiting: dict[str, deque[_Entry[T]]] = {}
        """Of each key at least one, the first to come first."""
        self._had: dict[str, float] = {}
        """Tokens of each key on the queue's clock; who asked last stands at the end."""
        self._num_waiting = 0
        self._clock = 0.0
        self._numbers = count()
        self._lock = threading.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        """Requests that wait."""
        return self._num_waiting

    @property
    def next_key(self) -> str | None:
        """Whose item is next; None if none waits."""
        with self._lock:
            return self._next_key()

    def put(self, key: str, num_tokens: int, item: T) -> None:
        """Let the item wait. Raises: QueueFull; QueueClosed."""
        with self._lock:
            if self._is_closed:
                raise QueueClosed("the model is being shut down and takes no more requests")
            if self._num_waiting >= self.max_waiting:
                raise QueueFull(
                    f"{self._num_waiting} requests for text wait already, as many as may; try later"
                )
            self._line(key).append(_Entry(next(self._numbers), num_tokens, item))

    def put_back(self, key: str, num_tokens: int, item: T) -> None:
        """Let an item that was taken wait once more, before the others of its key and beyond the bound."""
        with self._lock:
            self._line(key).appendleft(_Entry(next(self._numbers), num_tokens, item))

    def take(self) -> T | None:
        """The next item, its tokens charged to its key; None if none waits."""
        with self._lock:
            key = self._next_key()
            if key is None:
                return None
            entry = self._waiting[key][0]
            self._clock = max(self._clock, self._had[key])
            self._had[key] += entry.num_tokens
            self._drop(key, entry)
            return entry.item

    def give_back(self, key: str, num_tokens: int) -> None:
        """So many tokens of what was charged to the key were not needed."""
        with self._lock:
            if key in self._had:
                self._had[key] -= num_tokens

    def remove(self, key: str, item: T) -> bool:
        """Whether the item still waited; it does no more, and is not charged."""
        with self._lock:
            entry = next((entry for entry in self._waiting.get(key, ()) if entry.item is item), None)
            if entry is not None:
                self._drop(key, entry)
            return entry is not None

    def close(self) -> list[T]:
        """Take no more; what waited, in no particular order."""
        with self._lock:
            self._is_closed = True
            items = [entry.item for line in self._waiting.values() for entry in line]
            self._waiting.clear()
            self._num_waiting = 0
            return items

    def _next_key(self) -> str | None:
        def rank(key: str) -> tuple[float, int]:
            return self._had[key], self._waiting[key][0].number

        return min(self._waiting, key=rank, default=None)

    def _line(self, key: str) -> deque[_Entry[T]]:
        """Of the key, for one more to wait in."""
        had = self._had.pop(key, 0.0)
        self._had[key] = had if key in self._waiting else max(had, self._clock)
        self._num_waiting += 1
        line = self._waiting.setdefault(key, deque())
        self._forget()
        return line

    def _drop(self, key: str, entry: _Entry[T]) -> None:
        self._waiting[key].remove(entry)
        if not self._waiting[key]:
            del self._waiting[key]
        self._num_waiting -= 1

    def _forget(self) -> None:
        if len(self._had) > _MAX_KEYS + len(self._waiting):
            idle = [key for key in self._had if key not in self._waiting]
            for key in idle[: len(idle) // 2]:
                del self._had[key]
