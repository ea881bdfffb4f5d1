"""What a model's compression keeps: collected for a checkpoint, loaded, carried through a change of ranks.

Only the mean over the ranks of what they still owe acts on the model, so a state holds that mean: one number
for each of the model's, whatever the number of ranks. Each rank of a later run, of any number, starts from
it. A state that is to make the later run equal to the last bit holds each rank's own instead; at another
number of ranks their mean is taken then.

All is keyed by the parameter's name. Nothing depends on DDP's buckets, and the residual, which has the
gradient's own unit, serves any compressor.

Shapes: n ranks, M elements of the flat space.
Source: error feedback follows x - lr * mean_i(e_i), "The Error-Feedback Framework" (arXiv 1909.05350).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from eagleray.compression.exchanges import MeanBuffers, mean, mean_of
from eagleray.compression.layout import Place
from eagleray.compression.memory import RESIDUAL, Memory, Rule
from eagleray.compression.wire import Message, Step, Wire
from eagleray.errors import InputError

VERSION = 2
"""Of a state. 1 held the compressor's name only."""
PIECE = 1 << 18
"""Elements of a message: 1 MiB."""
_ORDINAL = 60_001
"""In place of a bucket's, so that nothing meets a bucket's messages."""
_NAMED = 3
_log = logging.getLogger("eagleray.compression")

Values = dict[str, dict[str, Tensor]]
"""By slot, by parameter."""


Result = TypeVar("Result")


def finish(work: Generator[None, None, Result]) -> Result:
    """Run it to its end; what it returns."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def collect(
    memory: Memory, wire: Wire, number: int, compressor: str, *, per_rank: bool = False
) -> Generator[None, None, dict[str, Any] | None]:
    """The state, on rank 0 and on the CPU; None on the others. All ranks must call it, between two steps.

    Yields before each wait for the network (`finish` runs it).

    Each rank sends 4 M bytes; rank 0 receives twice as much (`per_rank`: n - 1 times).

    Args:
        memory: of this rank; is not changed.
        wire: nothing may be on its way.
        number: of the next step.
        compressor: its name.
        per_rank: keep each rank's own values, not their mean.
    """
    step = Step(number, _ORDINAL)
    kept: list[Values] = [{} for _ in range(wire.world_size if per_rank else 1)]
    same: Values = {}
    rules: dict[str, Rule] = {}
    for slot, rule, parts, vector in _vectors(memory):
        rules[slot] = rule
        if rule == "same":
            if wire.rank == 0:
                same[slot] = {name: part.to("cpu", copy=True) for name, part in parts.items()}
            continue
        gathering = _gather(wire, step, vector) if per_rank else _mean_on_first(wire, step, vector)
        collected = yield from gathering
        for values, flat in zip(kept, collected, strict=True):
            if flat is not None:
                values[slot] = _cut(memory, slot, flat)
    if wire.rank != 0:
        return None
    return {
        "version": VERSION,
        "compressor": compressor,
        "world_size": wire.world_size,
        "parameters": {name: list(place.shape) for name, place in memory.layout.places.items()},
        "flat": [slot for slot in rules if slot in memory.flats],
        "same": same,
        **({"own": kept} if per_rank else {"mean": kept[0]}),
    }


def load(
    state: Mapping[str, Any],
    memory: Memory,
    compressor: str,
    *,
    rank: int,
    world_size: int,
    sends_residual: Callable[[Place], bool],
) -> list[str]:
    """Take a state into this rank's memory, before its first step; all ranks must load the same.

    Args:
        state: of `collect`, by any number of ranks, of any compressor.
        memory: holds the state afterwards; what the state does not have is zero.
        compressor: the name of the one in use.
        rank: this one's.
        world_size: n.
        sends_residual: its own (`Compressor`). What it would not send goes out with the first gradients.

    Returns what did not go over, in sentences: parameters new or gone, another compressor's own slots.

    Raises:
        InputError: the state is of another model, or was written by a later version.
    """
    if state.get("version") not in (1, VERSION):
        raise InputError(
            f"the compression state has version {state.get('version')!r}, this code reads versions 1 and "
            f"{VERSION}; use the newer eagleray, or start from the weights with training.init_from"
        )
    notes = _compare(state.get("parameters", {}), memory)
    for _, flat in memory.flats.values():
        flat.zero_()
    memory.tensors.clear()
    is_same_kind = state["compressor"] == compressor
    dropped = set()
    for slot, rule, values in _values(state, rank, world_size):
        if slot != RESIDUAL and not is_same_kind:
            dropped.add(slot)
        elif slot in state["flat"]:
            views = memory.layout.flat_views(memory.flat(slot, rule))
            for name in views.keys() & values.keys():
                views[name].copy_(values[name])
        else:
            for name in memory.layout.places.keys() & values.keys():
                memory.tensor(slot, name, rule, values[name].shape)[0].copy_(values[name])
    memory.owe(sends_residual)
    if dropped:
        kept = "; the residual goes over" if RESIDUAL in _slots(state) else ""
        notes.append(
            f"compression was {state['compressor']} and is {compressor}, so what only the first one uses is "
            f"left behind ({', '.join(sorted(dropped))}){kept}"
        )
    return notes


def even_out(memory: Memory, wire: Wire, number: int) -> Generator[None, None, None]:
    """Give every rank the mean of what all keep: before a planned change of their number. All must call it.

    Yields before each wait for the network (`finish` runs it).

    Afterwards ranks may leave, and the state of any that stays serves those that join (`collect` on it): with
    n' ranks that each hold the mean, the mean is what it was. The same bits on all ranks.

    Args:
        memory: holds the mean afterwards, in each slot of that rule.
        wire: of the ranks before the change; nothing may be on its way.
        number: of the next step.
    """
    if wire.world_size == 1:
        return
    step = Step(number, _ORDINAL)
    for slot, rule, parts, vector in _vectors(memory):
        if rule == "same":
            continue
        for start in range(0, vector.numel(), PIECE):
            piece = vector[start : start + PIECE]
            buffers = MeanBuffers(wire, piece.numel(), _device(wire, piece))
            buffers.vector.copy_(piece)
            yield from mean(wire, step, 0, buffers)
            piece.copy_(buffers.vector)
            wire.settle(number + 1)
        if slot not in memory.flats:
            for name, part in _split(vector, parts).items():
                parts[name].copy_(part)


@dataclass(frozen=True)
class Lost:
    """What went with ranks that were lost."""

    num_ranks: int
    share: float
    """Of the ranks, and so about of what was still owed."""
    norm: float
    """About: of the lost ranks' part of the mean residual, if they owed as much as this rank."""


def reweigh(memory: Memory, before: int, after: int) -> Lost:
    """Keep the weight of what this rank owes, when `before` ranks have become `after`.

    A mean over n' ranks gives each a weight of 1 / n' in place of 1 / n, so what it keeps is multiplied by
    n' / n. Where ranks were lost, what they owed goes with them; where ranks join that owe nothing, nothing
    is lost.

    Args:
        memory: of a rank that stays; is changed.
        before: n.
        after: n'.
    """
    lost = max(0, before - after)
    flat = memory.flats.get(RESIDUAL)
    norm = float(torch.linalg.vector_norm(flat[1])) * lost / before if flat and lost else 0.0
    for rule, flat in memory.flats.values():
        if rule == "mean":
            flat.mul_(after / before)
    for rule, tensors in memory.tensors.values():
        if rule == "mean":
            for tensor in tensors.values():
                tensor.mul_(after / before)
    found = Lost(lost, lost / before, norm)
    if lost:
        _log.warning(
            "compression: %d of %d ranks were lost, and with them about %.0f %% of what was still owed "
            "(norm %.3g)", lost, before, 100 * found.share, norm,
        )  # fmt: skip
    return found


def _vectors(memory: Memory) -> Iterator[tuple[str, Rule, dict[str, Tensor], Tensor]]:
    """Slot, rule, tensors by parameter, and all in one [V]: a copy, but for slots of the flat space."""
    for slot, (rule, flat) in sorted(memory.flats.items()):
        yield slot, rule, memory.layout.flat_views(flat), flat
    for slot, (rule, tensors) in sorted(memory.tensors.items()):
        parts = dict(sorted(tensors.items()))
        yield slot, rule, parts, torch.cat([part.reshape(-1) for part in parts.values()])


def _cut(memory: Memory, slot: str, vector: Tensor) -> dict[str, Tensor]:
    """The parts of a slot's vector, by parameter."""
    if slot in memory.flats:
        return memory.layout.flat_views(vector)
    return _split(vector, dict(sorted(memory.tensors[slot][1].items())))


def _split(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = vector.split([part.numel() for part in like.values()])
    return {name: piece.view(part.shape) for (name, part), piece in zip(like.items(), pieces, strict=True)}


def _mean_on_first(wire: Wire, step: Step, vector: Tensor) -> Generator[None, None, list[Tensor | None]]:
    """The ranks' mean of a vector [V] on rank 0, summed in rank order; None on the others: a list of one.

    Each rank takes the mean of every n-th piece and sends it to rank 0.
    """
    n, rank = wire.world_size, wire.rank
    found = torch.empty(vector.numel()) if rank == 0 else None
    if n == 1:
        return [vector.to("cpu", copy=True)]
    for start in range(0, vector.numel(), n * PIECE):
        pieces = [vector[start + p * PIECE : start + (p + 1) * PIECE] for p in range(n)]
        incoming = [_message(wire, pieces[rank]) if p != rank else None for p in range(n)]
        outgoing = [_message(wire, pieces[p], fill=True) if p != rank else None for p in range(n)]
        pending = wire.swap(step, 0, outgoing, incoming)
        yield
        pending.wait()
        parts = [pieces[rank] if one is None else _floats(one) for one in incoming if pieces[rank].numel()]
        own = mean_of(parts) if parts else pieces[rank]
        outgoing = [_message(wire, own, fill=True) if p == 0 and rank else None for p in range(n)]
        incoming = [_message(wire, pieces[p]) if rank == 0 and p else None for p in range(n)]
        pending = wire.swap(step, 1, outgoing, incoming)
        yield
        pending.wait()
        wire.settle(step.number + 1)
        if found is not None:
            means = [own, *(_floats(one) for one in incoming if one is not None)]
            found[start : start + n * PIECE].copy_(torch.cat(means))
    return [found]


def _gather(wire: Wire, step: Step, vector: Tensor) -> Generator[None, None, list[Tensor | None]]:
    """Every rank's vector [V] on rank 0, by rank; None on the others."""
    n, rank = wire.world_size, wire.rank
    found = [torch.empty(vector.numel()) if rank == 0 else None for _ in range(n)]
    for start in range(0, vector.numel(), PIECE):
        piece = vector[start : start + PIECE]
        outgoing = [_message(wire, piece, fill=True) if p == 0 and rank else None for p in range(n)]
        incoming = [_message(wire, piece) if rank == 0 and p else None for p in range(n)]
        pending = wire.swap(step, 0, outgoing, incoming)
        yield
        pending.wait()
        wire.settle(step.number + 1)
        for into, message in zip(found, incoming, strict=True):
            if into is not None:
                into[start : start + PIECE].copy_(piece if message is None else _floats(message))
    return found


def _message(wire: Wire, piece: Tensor, *, fill: bool = False) -> Message | None:
    """One with room for, or with, the numbers of a piece; None where it has none."""
    if not piece.numel():
        return None
    message = wire.message(4 * piece.numel(), _device(wire, piece))
    if fill:
        _floats(message).copy_(piece)
    return message


def _floats(message: Message) -> Tensor:
    return message.body.view(torch.float32)


def _device(wire: Wire, tensor: Tensor) -> torch.device:
    return tensor.device if wire.is_nccl else torch.device("cpu")


def _values(
    state: Mapping[str, Any], rank: int, world_size: int
) -> Iterator[tuple[str, Rule, Mapping[str, Tensor]]]:
    """Slot, rule, and this rank's tensors by parameter."""
    for slot, values in state.get("same", {}).items():
        yield slot, "same", values
    own = state.get("own")
    if own is None:
        for slot, values in state.get("mean", {}).items():
            yield slot, "mean", values
        return
    for slot in own[0]:
        if len(own) == world_size:
            yield slot, "mean", own[rank][slot]
        else:
            yield slot, "mean", {name: mean_of([one[slot][name] for one in own]) for name in own[0][slot]}


def _slots(state: Mapping[str, Any]) -> set[str]:
    first = state["own"][0] if "own" in state else state.get("mean", {})
    return {*state.get("same", {}), *first}


def _compare(saved: Mapping[str, list[int]], memory: Memory) -> list[str]:
    """Sentences of the parameters that the state or the model lacks. Raises: InputError: see `load`."""
    places = memory.layout.places
    if not saved or not places:
        return []
    if saved.keys().isdisjoint(places):
        raise InputError(
            f"the compression state is of another model: it has {_listed(saved)}, and this model trains "
            f"{_listed(places)}; give the state of this model, or start without one"
        )
    for name in [name for name in places if name in saved]:
        if tuple(saved[name]) != places[name].shape:
            raise InputError(
                f"the compression state is of another model: its {name} has the shape "
                f"{tuple(saved[name])}, and this model's {places[name].shape}; give the state of this model, "
                "or start without one"
            )
    gone, new = ([one for one in a if one not in b] for a, b in ((saved, places), (places, saved)))
    notes = []
    if gone:
        notes.append(f"the compression state has {_listed(gone)}, which this model does not train: left out")
    if new:
        notes.append(f"the compression state has nothing of {_listed(new)}: they begin at zero")
    return notes


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
