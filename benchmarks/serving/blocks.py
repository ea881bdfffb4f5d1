"""Arithmetic of alternating blocks, of decisions and of growth. Pure."""

from __future__ import annotations

import itertools
import random
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
_WANTS = re.compile(r"(\S+): wants (\d+) replicas?, before (\d+): (.*)")


def alternate(contestants: Mapping[str, Callable[[], T]], reps: int, seed: int = 0) -> Iterator[dict[str, T]]:
    """Yield what each contestant gave, once for each repetition.

    They take turns, in another order each time: who comes first finds other things in the caches, and a
    neighbour's wave falls on all of them.
    """
    draw, names = random.Random(seed), list(contestants)
    for _ in range(reps):
        draw.shuffle(names)
        found = {name: contestants[name]() for name in names}
        yield {name: found[name] for name in contestants}


def shares(counts: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """How far each one's part of the whole is off its weight's: -0.05 is 5 % less than its due."""
    whole, weight = sum(counts.values()), sum(weights.values())
    if whole <= 0:
        return dict.fromkeys(weights, -1.0)
    return {name: counts.get(name, 0.0) / whole / (weights[name] / weight) - 1 for name in weights}


def decision(line: str, app: str) -> tuple[int, int, str] | None:
    """Replicas wanted, those before, and why, if a log's line is a decision on the application."""
    found = _WANTS.search(line)
    if found is None or found[1] != app:
        return None
    return int(found[2]), int(found[3]), found[4]


def reversals(wanted: Sequence[int]) -> int:
    """How often what was wanted turned: down after up, or up after down."""
    steps = [after - before for before, after in itertools.pairwise(wanted) if after != before]
    return sum((one > 0) != (two > 0) for one, two in itertools.pairwise(steps))


def growth(samples: Sequence[float], *, settled: int, width: int = 3) -> float | None:
    """How much more there is at the end than after the first `settled` samples; None for too few.

    Of `width` neighbouring samples the median counts.
    """
    if len(samples) < settled + 2 * width:
        return None
    first = statistics.median(samples[settled : settled + width])
    last = statistics.median(samples[-width:])
    return last / first - 1 if first > 0 else None


def more(samples: Sequence[float], *, settled: int) -> float | None:
    """By how much the least of the last third exceeds the most of what is settled before it; 0 for none.

    Descriptors come and go with connections: a leak is what never goes back.
    """
    rest = samples[settled:]
    third = len(rest) // 3
    if third == 0:
        return None
    return max(0.0, min(rest[-third:]) - max(rest[:-third]))


def most(
    samples: Mapping[int, Sequence[float]],
    titles: Mapping[int, str],
    judge: Callable[[Sequence[float]], float | None],
) -> tuple[float, str] | None:
    """The largest verdict on a process that lived all the time, and its title; None where there is none.

    Args:
        samples: Of each process.
        titles: Of the processes.
        judge: The verdict on one process's samples; None where they are too few.
    """
    whole = max(map(len, samples.values()), default=0)
    found = [
        (value, titles.get(pid, ""))
        for pid, one in samples.items()
        if len(one) == whole and (value := judge(one)) is not None
    ]
    return max(found, default=None)


def busiest(collapsed: str, count: int) -> list[tuple[float, str]]:
    """The functions in which the most samples ended, each with its part of all.

    Args:
        collapsed: Stacks as py-spy's raw format has them: frames with semicolons, a blank, a number.
        count: So many at most.
    """
    ended: dict[str, int] = {}
    for line in collapsed.splitlines():
        stack, _, number = line.rpartition(" ")
        if stack and number.isdigit():
            last = stack.rpartition(";")[2]
            ended[last] = ended.get(last, 0) + int(number)
    whole = sum(ended.values())
    found = sorted(((number / whole, name) for name, number in ended.items()), reverse=True)
    return found[:count]
