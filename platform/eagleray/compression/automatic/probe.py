"""Measurements: the link, and what each candidate costs the CPU; in the engine's thread, on its wire.

Both are over in less than two seconds on any link of 1 Mbit/s and more: sizes grow only while an exchange is
quick, and the slowest rank's time decides for all, so that all do the same exchanges.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagleray.compression.automatic.timeline import Exchange, Link
from eagleray.compression.automatic.volume import legs_of
from eagleray.compression.compressor import Compressor, Plan
from eagleray.compression.dry import DryWire, sample_of
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Pending, Step, Wire
from eagleray.specs.compression import CompressionSpec

SIZES = (64 << 10, 1 << 20, 8 << 20)
"""Bytes that each rank sends, at most."""
WHOLES = 2
"""None but the first is larger than so many times what this rank sends of the whole model uncompressed: no
exchange of a step comes near that."""
QUICK_S = 0.1
"""An exchange that took longer is not repeated."""
LONGEST_S = 0.6
"""None is made larger than what is expected to take so long. The largest says most: a connection that had to
speed up first made 75 Mbit/s of 1 MiB on a link of 100."""
SAMPLE = 1 << 20
"""Elements, about, of the bucket that codecs are timed on."""
CODECS_S = 0.8
"""After so long no further candidate's codec is timed more than once."""
_CHUNK = 256 << 10
"""Bytes of a message, as in a bucket's slices."""
_ORDINAL = 60_000
"""In place of a bucket's, so that nothing meets a bucket's messages."""
_END = object()


@dataclass(frozen=True)
class Effort:
    """What one candidate costs the CPU."""

    num_slices: int
    """Of the sample."""
    cpu_s: tuple[float, ...]
    """[L + 1], per element: before the first leg, between legs, after the last."""


def share(wire: Wire, value: Any) -> list[Any]:
    """Every rank's value, by rank: whatever JSON can hold."""
    return [json.loads(one) for one in wire.share(json.dumps(value).encode())]


def cores_per_rank(wire: Wire) -> float:
    """This machine's CPUs that we may use over how many of the ranks are on it; the smallest of all ranks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    cpus = len(_cpus())
    said = share(wire, [boot.read_text() if boot.exists() else wire.rank, cpus])
    machines = [machine for machine, _ in said]
    return min(count / machines.count(machine) for machine, count in said)


def _cpus() -> set[int]:
    """The CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def measure_links(
    wire: Wire, exchanges: Sequence[Exchange], device: torch.device, whole: int
) -> dict[Exchange, Link]:
    """Latency and rate of each exchange; all ranks get the same. `Step` numbers are not used up.

    `whole` is what each rank sends of the model uncompressed, bytes: its steps have no larger exchanges.
    """
    return {kind: _measure_link(wire, kind, device, index, whole) for index, kind in enumerate(exchanges)}


def _measure_link(wire: Wire, kind: Exchange, device: torch.device, index: int, whole: int) -> Link:
    counter = iter(range(index * 1000, (index + 1) * 1000))
    _exchange(wire, kind, 0, device, counter)
    latency = min(max(share(wire, _exchange(wire, kind, 0, device, counter))) for _ in range(3))
    rate, before = 0.0, 0
    for most in SIZES:
        size = min(most, int(rate * LONGEST_S), WHOLES * whole) if rate else most
        if size < 2 * before:
            break  # it would tell nothing new
        # The second of two in a row: a shaped link lets the first one's beginning pass at full speed. Of one
        # that was slow the beginning is a small part.
        taken = max(share(wire, _exchange(wire, kind, size, device, counter)))
        if taken < QUICK_S:
            taken = max(share(wire, _exchange(wire, kind, size, device, counter)))
        rate, before = size / max(taken - latency, taken / 2, 1e-7), size
    return Link(latency, rate)


def _exchange(wire: Wire, kind: Exchange, size: int, device: torch.device, counter: Any) -> float:
    """Seconds of one exchange in which each rank sends `size` bytes."""
    step = Step(0, _ORDINAL)
    if kind == "sum":
        numel = max(1, size * wire.world_size // (2 * (wire.world_size - 1)))
        tensor = torch.ones(numel, dtype=torch.int8, device=device)
        calls: list[Callable[[], Pending]] = [lambda: wire.sum(step, next(counter), tensor)]
    else:
        each = size // (wire.world_size - 1)
        count = max(1, -(-each // _CHUNK))
        calls = [_swap(wire, step, next(counter), each // count, device) for _ in range(count)]
    started = time.perf_counter()
    for pending in [call() for call in calls]:
        pending.wait()
    _synchronize(device)
    seconds = time.perf_counter() - started
    wire.settle(step.number + 1)
    return seconds


def _swap(wire: Wire, step: Step, stage: int, size: int, device: torch.device) -> Callable[[], Pending]:
    peers = [peer != wire.rank for peer in range(wire.world_size)]
    outgoing, incoming = (
        [wire.message(size, device) if is_peer else None for is_peer in peers] for _ in range(2)
    )
    for message in (*outgoing, *incoming):
        if message is not None:
            message.body.fill_(1)  # a page that is not there yet costs more than the copy
    wire.expect(step, stage, incoming)
    return lambda: wire.swap(step, stage, outgoing, incoming)


def measure_codecs(
    candidates: Mapping[str, Compressor],
    spec: CompressionSpec,
    layout: Layout,
    device: torch.device,
) -> dict[str, Effort]:
    """What each candidate costs this rank, on one bucket like the model's, over a wire without peers."""
    started, found = time.perf_counter(), {}
    sample = sample_of(layout, SAMPLE)
    for kind, compressor in candidates.items():
        times = 1 if time.perf_counter() - started > CODECS_S else 3
        num_legs = len(legs_of(spec, kind, sample[1].places, layout.world_size))
        wire = DryWire(layout.world_size, device)
        found[kind] = _measure_codec(compressor, sample, wire, times, num_legs)
    return found


def _measure_codec(
    compressor: Compressor, sample: tuple[Layout, Bucket], wire: DryWire, times: int, num_legs: int
) -> Effort:
    layout, bucket = sample
    device = wire.device
    compressor.bind(layout, wire, Memory(layout, device))
    plan = compressor.plan(bucket, device)
    gradient = torch.randn(bucket.numel, generator=torch.Generator().manual_seed(0)).to(device)
    runs = []
    for number in range(times + 1):
        runs.append(_segments(plan, gradient.clone(), Step(number + 1, 0)))
        wire.is_first = False
    fastest = min(runs[1:], key=sum)
    num_slices = max(1, (len(fastest) - 1) // num_legs)
    phases = [fastest[0]]
    for leg in range(num_legs):
        end = None if leg == num_legs - 1 else 1 + (leg + 1) * num_slices
        phases.append(sum(fastest[1 + leg * num_slices : end]))
    return Effort(num_slices, tuple(seconds / max(1, bucket.numel) for seconds in phases))


def _segments(plan: Plan, gradient: Tensor, step: Step) -> list[float]:
    """Seconds up to each yield, and to the end."""
    _synchronize(gradient.device)
    segments, started = [], time.perf_counter()
    generator, is_done = plan.run(gradient, step), False
    while not is_done:
        is_done = next(generator, _END) is _END
        _synchronize(gradient.device)
        now = time.perf_counter()
        segments.append(now - started)
        started = now
    return segments


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
