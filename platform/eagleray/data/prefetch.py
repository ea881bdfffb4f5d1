"""One background thread that works ahead of a loop."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

CLOSE_TIMEOUT_S = 10.0
"""A read that hangs (a lost network share) must not hang the end of the run; the thread is a daemon."""


def prefetched(items: Iterator[T], depth: int) -> Generator[T]:
    """The same items, up to `depth` of them made ahead of use in a thread.

    The thread starts with the first item asked for and ends with the generator (exhausted, closed, collected
    or broken by an exception). An exception of `items` is raised here, in its place, traceback included.
    """
    results: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    free_slots = threading.Semaphore(depth)
    is_closed = threading.Event()

    def work() -> None:
        try:
            while True:
                free_slots.acquire()
                if is_closed.is_set():
                    return
                results.put((next(items),))
        except StopIteration:
            results.put(None)
        except BaseException as error:
            results.put(error)

    thread = threading.Thread(target=work, name="eagleray-prefetch", daemon=True)
    thread.start()
    try:
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            free_slots.release()
            yield result[0]
    finally:
        is_closed.set()
        free_slots.release()
        thread.join(CLOSE_TIMEOUT_S)
