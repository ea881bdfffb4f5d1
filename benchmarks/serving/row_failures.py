"""The long rows of failures, with --full: requests through the SDK while something happens to the service."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import workloads
from kit.results import RowFailed, Teller
from rig import Rig

if TYPE_CHECKING:
    from eagleray.client import AsyncClient

NAME = "bench-failing"
MODEL = "tiny"
RATE_PER_S = 200.0
EVERY_S = 15.0
FIRST_S = 5.0
SERVICE = {"max_batch_size": 16, "idle_s": 0}
SETTLED_S, LOOK_S = 60.0, 0.2


@dataclass
class Traffic:
    """Requests at a steady rate through the SDK, in its own loop."""

    url: str
    key: str
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, events: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Until `events` returns."""
        from eagleray.client import AsyncClient

        values = workloads.samples(MODEL)
        async with AsyncClient(self.url, self.key) as client:
            await client.predict(NAME, values)
            happening = asyncio.create_task(events())
            due = time.monotonic()
            while not happening.done():
                task = asyncio.create_task(self._ask(client, values))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                due += 1 / RATE_PER_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*self._tasks)
            await happening

    async def _ask(self, client: AsyncClient, values: Any) -> None:
        began = time.monotonic()
        try:
            await client.predict(NAME, values)
            self.answered += 1
        except Exception as error:
            self.failed[f"{type(error).__name__}: {str(error)[:120]}"] += 1
        self.longest_s = max(self.longest_s, time.monotonic() - began)


def failures(tell: Teller, reps: int, rig: Rig, *, kind: str, seconds: float) -> None:
    """Of so many seconds with an event every 15 s, the requests that failed."""
    rig.ours.up()
    versions = [rig.ours.publish(NAME, MODEL) for _ in range(2)]
    happen = EVENTS[kind]
    try:
        rig.ours.deploy(NAME, versions[0], min_replicas=2, max_replicas=2, **SERVICE)
        for number in range(reps):
            traffic, count = Traffic(rig.ours.url, rig.ours.key_text), 0

            async def events() -> None:
                nonlocal count
                await asyncio.sleep(FIRST_S)
                ends = time.monotonic() + seconds
                while time.monotonic() < ends:
                    await asyncio.to_thread(happen, rig, versions, count)
                    count += 1
                    await asyncio.sleep(EVERY_S)

            asyncio.run(traffic.run(events))
            if traffic.answered == 0:
                raise RowFailed(f"no request was answered: {traffic.failed.most_common(2)}")
            tell.repetition(
                failed=sum(traffic.failed.values()),
                answered=traffic.answered,
                events=count,
                longest_s=traffic.longest_s,
                why=dict(traffic.failed.most_common(5)),
            )
            tell.note(
                f"{number + 1}/{reps}: {count} x {kind}: {sum(traffic.failed.values())} of "
                f"{traffic.answered:,} failed, the longest took {traffic.longest_s:.1f} s"
            )
    finally:
        rig.ours.undeploy(NAME)


def _scale_down(rig: Rig, versions: list[int], number: int) -> None:
    """One replica less, and one more again at the next event; returns when there are exactly so many."""
    replicas = 1 if number % 2 == 0 else 2
    rig.ours.deploy(NAME, versions[0], min_replicas=replicas, max_replicas=replicas, **SERVICE)
    deadline = time.monotonic() + SETTLED_S
    while (found := len(rig.ours.replicas(NAME))) != replicas:
        if time.monotonic() > deadline:
            raise RowFailed(
                f"{found} processes are replicas of {NAME} {SETTLED_S:.0f} s after it was to have {replicas}"
            )
        time.sleep(LOOK_S)


def _replace(rig: Rig, versions: list[int], number: int) -> None:
    """The other version takes over."""
    rig.ours.deploy(NAME, versions[(number + 1) % 2], min_replicas=2, max_replicas=2, **SERVICE)


def _kill(rig: Rig, versions: list[int], number: int) -> None:
    """SIGKILL for one of two replicas."""
    found = rig.ours.replicas(NAME)
    if not found:
        raise RowFailed(f"no process is a replica of {NAME}")
    os.kill(found[number % len(found)], signal.SIGKILL)


def _drain(rig: Rig, versions: list[int], number: int) -> None:
    """The gateway ends, as for a new setting, and another one takes its place."""
    rig.ours.replace_gateways()


EVENTS: Mapping[str, Callable[[Rig, list[int], int], None]] = {
    "scale-down": _scale_down,
    "replacement": _replace,
    "kill": _kill,
    "drain": _drain,
}
