"""Ranks of one process, in lockstep: a real `Wire` over a process group that only copies."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eagleray.compression.compressor import Compressor
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Step, Wire
from eagleray.groups import Group


class _Work:
    """What is to be done in `wait`."""

    def __init__(self, then=lambda: None):
        self._then = then

    def wait(self) -> None:
        self._then()


class _Mail:
    """What all ranks of a world share."""

    def __init__(self, world_size: int):
        self.world_size = world_size
        self.sent: defaultdict[tuple[int, int, int], deque[Tensor]] = defaultdict(deque)
        self.sums: list[tuple[list[Tensor], list[Tensor]]] = []


class _ProcessGroup:
    """One rank's end: as much of a process group as `Wire` calls."""

    def __init__(self, mail: _Mail, rank: int):
        self._mail, self._rank, self._num_sums = mail, rank, 0

    def send(self, tensors: list[Tensor], to: int, tag: int) -> _Work:
        self._mail.sent[self._rank, to, tag].append(tensors[0].clone())
        return _Work()

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> _Work:
        """Into the beginning of the tensor, which may be longer than the message."""

        def take() -> None:
            message = self._mail.sent[source, self._rank, tag].popleft()
            tensors[0][: len(message)].copy_(message)

        return _Work(take)

    def allreduce(self, tensors: list[Tensor]) -> _Work:
        """Sums when the last rank has come, in rank order."""
        number, self._num_sums = self._num_sums, self._num_sums + 1
        if number == len(self._mail.sums):
            self._mail.sums.append(([], []))
        given, originals = self._mail.sums[number]
        given.append(tensors[0])
        originals.append(tensors[0].clone())

        def add() -> None:
            assert len(given) == self._mail.world_size, "a rank waits for a sum that another has not begun"
            total = originals[0].clone()
            for one in originals[1:]:
                total += one
            tensors[0].copy_(total)

        return _Work(add)


def wires(world_size: int, layout: int = 0, scheme: str = "") -> list[Wire]:
    """One wire for each rank of a world in this process."""
    mail = _Mail(world_size)
    ends: list[Any] = [_ProcessGroup(mail, rank) for rank in range(world_size)]
    return [
        Wire(Group("fake", end, rank, world_size, "gloo"), layout, scheme) for rank, end in enumerate(ends)
    ]


def in_lockstep(generators: Sequence[Generator[None, None, Any]]) -> list[Any]:
    """Run one generator for each rank, all up to the next yield before any goes on; what they return."""
    results: list[Any] = [None] * len(generators)
    running = dict(enumerate(generators))
    while running:
        for rank, generator in list(running.items()):
            try:
                next(generator)
            except StopIteration as stop:
                results[rank] = stop.value
                del running[rank]
    return results


def same_bits(tensors: Sequence[Tensor]) -> bool:
    """Whether all have the bits of the first; any NaN is as good as another."""
    first = tensors[0]
    return all(
        torch.equal(one.isnan(), first.isnan())
        and torch.equal(one.nan_to_num(7.0).view(torch.int32), first.nan_to_num(7.0).view(torch.int32))
        for one in tensors
    )


class World:
    """Ranks with a compressor each, for one model."""

    def __init__(
        self,
        size: int,
        shapes: Mapping[str, Sequence[int]],
        make: Callable[[], Compressor],
        buckets: Sequence[Sequence[str]] | None = None,
        *,
        dense_below: int = 1024,
    ):
        """Take the number of ranks, the parameters, what makes a compressor, which share a bucket."""
        self.size = size
        self.layout = Layout(shapes.items(), world_size=size, dense_below=dense_below)
        self.wires = wires(size, self.layout.digest)
        self.memories = [Memory(self.layout, torch.device("cpu")) for _ in range(size)]
        self.buckets = [self._bucket(names) for names in buckets or [list(shapes)]]
        self.bad: list[str | None] = []
        """Of each step so far: the last parameter that was told as not finite."""
        self._plans = []
        for wire, memory in zip(self.wires, self.memories, strict=True):
            compressor = make()
            compressor.bind(self.layout, wire, memory)
            self._plans.append([compressor.plan(bucket, torch.device("cpu")) for bucket in self.buckets])

    def exchange(
        self, gradients: Sequence[Mapping[str, Tensor]], step: int, loss_scale: float = 1.0
    ) -> dict[str, Tensor]:
        """The mean of one gradient for each rank, as rank 0 has it; all ranks must have its bits."""
        means: dict[str, Tensor] = {}
        bad: str | None = None
        for wire in self.wires:
            wire.settle(step)
        for number, bucket in enumerate(self.buckets):
            flat = [torch.cat([given[name].flatten() for name in bucket.key]) for given in gradients]
            told = in_lockstep(
                [
                    plans[number].run(one, Step(step, number, loss_scale))
                    for plans, one in zip(self._plans, flat, strict=True)
                ]
            )
            assert same_bits(flat), "the replicas differ"
            assert len(set(told)) == 1, told
            bad = bucket.key[told[0]] if told[0] >= 0 else bad
            for place, start in zip(bucket.places, bucket.starts, strict=True):
                means[place.name] = flat[0][start : start + place.numel]
        self.bad.append(bad)
        return means

    def state_bits(self) -> list[bytes]:
        """All that the ranks keep over the flat space."""
        return [
            flat.numpy().tobytes()
            for memory in self.memories
            for _, (_, flat) in sorted(memory.flats.items())
        ]

    def _bucket(self, names: Sequence[str]) -> Bucket:
        return Bucket.packed(self.layout.places[name] for name in names)
