"""Several requests, one forward pass: which of them go together, and who waits for whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Predict = Callable[[Inputs], Awaitable[dict[str, Array]]]


class Batcher(Protocol):
    """Answers each request by itself, and computes several at once."""

    async def submit(self, inputs: Inputs) -> dict[str, Array]:
        """The outputs for these inputs, which were checked. Raises: what the model raised."""
        ...


@dataclass(frozen=True)
class Group:
    """Requests of one forward pass, by their positions."""

    positions: tuple[int, ...]
    sizes: tuple[int, ...]
    """Samples of each."""


class ServeBatcher:
    """By `@serve.batch`: a request waits at most `wait_s` for others."""

    def __init__(self, predict: Predict, max_batch_size: int, wait_s: float) -> None:
        from ray import serve

        self._predict, self._max_batch_size = predict, max_batch_size

        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=wait_s)
        async def together(requests: list[Inputs]) -> list[Any]:
            return await self._answer(requests)

        self._together: Any = together

    async def submit(self, inputs: Inputs) -> dict[str, Array]:
        """As Batcher."""
        answer = await self._together(inputs)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _answer(self, requests: Sequence[Inputs]) -> list[Any]:
        """Each request's outputs, or what went wrong with the group that it was in."""
        answers: list[Any] = [None] * len(requests)
        for group in plan(requests, self._max_batch_size):
            try:
                outputs = await self._predict(stack([requests[position] for position in group.positions]))
                parts = split(outputs, group.sizes)
            except Exception as error:  # the other groups have their answers all the same
                parts = [error] * len(group.positions)
            for position, part in zip(group.positions, parts, strict=True):
                answers[position] = part
        return answers


def plan(requests: Sequence[Inputs], max_batch_size: int) -> list[Group]:
    """Groups of requests whose arrays fit together, in their order, of `max_batch_size` samples at most.

    A request of more samples than that is a group by itself.
    """
    groups: list[Group] = []
    open_groups: dict[Any, int] = {}
    for position, inputs in enumerate(requests):
        size = len(next(iter(inputs.values())))
        kind = tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(inputs.items()))
        at = open_groups.get(kind)
        if at is not None and sum(groups[at].sizes) + size <= max_batch_size:
            groups[at] = Group((*groups[at].positions, position), (*groups[at].sizes, size))
        else:
            open_groups[kind] = len(groups)
            groups.append(Group((position,), (size,)))
    return groups


def stack(requests: Sequence[Inputs]) -> Inputs:
    """The requests' arrays, one behind the other."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}


def split(outputs: Mapping[str, Array], sizes: Sequence[int]) -> list[dict[str, Array]]:
    """The outputs of each of the requests that were stacked."""
    if len(sizes) == 1:
        return [dict(outputs)]
    ends = np.cumsum(sizes)[:-1]
    parts = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: parts[name][index] for name in parts} for index in range(len(sizes))]
