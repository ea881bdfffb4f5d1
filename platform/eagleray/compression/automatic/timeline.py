"""How long a step would take with each compressor: the timeline of its buckets, replayed. Pure arithmetic.

The engine's order is replayed as it is (`engine`): a bucket begins when its gradient is ready, only so many
are in work at a time, and while one waits for the network another is encoded. A bucket has slices, a slice
has legs (a swap of payloads, then the means back), and each leg takes `latency + bytes / rate` of one link
that serves one at a time.

Shapes: n ranks, L legs.
Source: the idea in Agarwal et al. (arXiv 2103.00543) and Espresso (arXiv 2205.14465).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Exchange = Literal["swap", "sum"]
"""swap: messages from each rank to each other, different ones or the same (`Wire.swap`, `Wire.gather`, which
send them alike). sum: the backend's all-reduce (`Wire.sum`)."""


@dataclass(frozen=True)
class Link:
    """What an exchange costs, all ranks at it at once."""

    latency_s: float
    """Of one that carries next to nothing."""
    bytes_per_s: float
    """Of what each rank sends."""


@dataclass(frozen=True)
class Leg:
    """One exchange of a bucket."""

    exchange: Exchange
    num_bytes: int
    """That each rank sends, over all slices."""


@dataclass(frozen=True)
class Task:
    """One bucket with one compressor."""

    legs: tuple[Leg, ...]
    cpu_s: tuple[float, ...]
    """[L + 1]: before the first leg, between legs, after the last; over all slices."""
    num_slices: int = 1


@dataclass(frozen=True)
class Backward:
    """When a step's buckets are ready, and what else is in the step."""

    ready_s: tuple[float, ...]
    """By bucket, from when the first one is; rising."""
    rest_s: float = 0.0
    """From the end of a step's exchange to the next one's first ready bucket: optimizer, loading, forward."""


class _Running:
    """A bucket in work."""

    def __init__(self, task: Task):
        self.task = task
        self.arrivals: deque[tuple[int, float]] = deque()
        """Leg and time, in the order in which the plan waits for them."""


def replay(
    backward: Backward,
    tasks: Sequence[Task],
    links: Mapping[Exchange, Link],
    *,
    at_once: int,
    shared: float = 0.0,
) -> float:
    """Seconds that one step takes.

    Args:
        backward: its buckets.
        tasks: what is done with each.
        links: by exchange.
        at_once: how many buckets are in work at a time, at most (`Wire.at_once`).
        shared: by how much a second of codec puts off the backward pass: 1 where both share a core, 0 where
            the codec has cores (or a GPU's stream) of its own.
    """
    now = link_free = busy = busy_in_backward = 0.0
    waiting, running = deque(range(len(tasks))), deque[_Running]()

    def send(one: _Running, leg: int) -> None:
        nonlocal link_free
        link = links[one.task.legs[leg].exchange]
        share = one.task.legs[leg].num_bytes / one.task.num_slices
        link_free = max(link_free, now) + share / link.bytes_per_s
        one.arrivals.append((leg, link_free + link.latency_s))

    def work(one: _Running, phase: int) -> None:
        nonlocal now, busy
        seconds = one.task.cpu_s[phase] / one.task.num_slices
        now, busy = now + seconds, busy + seconds

    while waiting or running:
        ready = backward.ready_s[waiting[0]] + shared * busy if waiting else float("inf")
        if waiting and len(running) < at_once and (ready <= now or not running):
            one = _Running(tasks[waiting.popleft()])
            now = max(now, ready)
            busy_in_backward = busy
            for _ in range(one.task.num_slices):
                work(one, 0)
                if one.task.legs:
                    send(one, 0)
            if one.arrivals:
                running.append(one)
            continue
        one = running[0]
        leg, arrival = one.arrivals.popleft()
        now = max(now, arrival)
        work(one, leg + 1)
        if leg + 1 < len(one.task.legs):
            send(one, leg + 1)
        if not one.arrivals:
            running.popleft()
    last = backward.ready_s[-1] if backward.ready_s else 0.0
    return backward.rest_s + max(now, last + shared * busy_in_backward)
