"""Many requests at once, so many at a time, and their answers in the order of what was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from eagleray.client.calls import MAX_CONNECTIONS
from eagleray.errors import InputError

CONCURRENCY = 16

T = TypeVar("T")


def in_threads(ask: Callable[[Any], T], entries: Iterable[Any], concurrency: int) -> list[T]:
    """`ask` of each entry. Raises: what the first one that fails raises, when all that began have ended."""
    source, num_workers = _shared(entries, concurrency)
    found: dict[int, T] = {}
    failures: list[BaseException] = []
    turn = threading.Lock()

    def work() -> None:
        while not failures:
            try:
                with turn:
                    number, entry = next(source, _END)
                if number < 0:
                    return
                found[number] = _noted(number, ask, entry)
            except BaseException as error:
                failures.append(error)

    with ThreadPoolExecutor(num_workers, "predict-many") as pool:
        try:
            wait([pool.submit(work) for _ in range(num_workers)])
        except BaseException as error:  # Ctrl-C: the workers take nothing more
            failures.insert(0, error)
    if failures:
        raise failures[0]
    return [found[number] for number in range(len(found))]


async def in_tasks(ask: Callable[[Any], Awaitable[T]], entries: Iterable[Any], concurrency: int) -> list[T]:
    """`ask` of each entry. Raises: what the first one that fails raises, when all others are cancelled."""
    source, num_workers = _shared(entries, concurrency)
    found: dict[int, T] = {}

    async def work() -> None:
        for number, entry in source:
            try:
                found[number] = await ask(entry)
            except Exception as error:
                _note(error, number)
                raise

    workers = [asyncio.create_task(work()) for _ in range(num_workers)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [found[number] for number in range(len(found))]


_END = (-1, None)


def _shared(entries: Iterable[Any], concurrency: int) -> tuple[Iterator[tuple[int, Any]], int]:
    """The entries with their numbers, and how many are to take from them. Raises: InputError."""
    if not 1 <= concurrency <= MAX_CONNECTIONS:
        raise InputError(f"concurrency is {concurrency}; give 1 to {MAX_CONNECTIONS}")
    most = len(entries) if isinstance(entries, Sized) else concurrency
    return enumerate(entries), max(1, min(concurrency, most))


def _noted(number: int, ask: Callable[[Any], T], entry: Any) -> T:
    try:
        return ask(entry)
    except Exception as error:
        _note(error, number)
        raise


def _note(error: Exception, number: int) -> None:
    error.add_note(f"in predict_many, entry {number} of the inputs")
