"""What the ranks agree on: sums of metrics, votes, averaged buffers, equal values, the state after a change.

Nothing else sends those. All ranks must call the same methods in the same order, on a group that nothing else
uses.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eagleray import groups
from eagleray.errors import PeerLost, TrainingError
from eagleray.groups import Group

_DIGEST_BYTES, _TEXT_BYTES = 32, 64
_PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Seen:
    """What the ranks said of the steps of a vote."""

    is_asked_to_stop: bool
    """Some rank was asked to have all of them stop after the next step."""
    num_next: int
    """How many steps the next vote is for: rank 0's wish."""
    consumed: tuple[int, ...]
    """The digests of the samples that the steps' losses take, over all ranks (`data.digests`)."""


class Vote:
    """The vote of the next steps on its way."""

    def __init__(self, agreement: Agreement, values: Tensor, work: dist.Work | None):
        self._agreement, self._values, self._work = agreement, values, work

    def result(self) -> Seen:
        """The sums over the ranks; waits for them if need be. Raises: PeerLost."""
        if self._work is not None:
            self._agreement._wait(self._work, "voting on a step")
            self._work = None
        stop, num_next, *consumed = self._values.tolist()
        return Seen(stop > 0, num_next, tuple(consumed))


class Agreement:
    """Agrees over `group` (gloo, CPU tensors)."""

    def __init__(self, group: Group):
        self._group = group
        self.is_waiting = False
        """It waits for what the others say."""

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum of each value over the ranks, in float64. All ranks give the same names in the same order.

        Raises: PeerLost
        """
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        self._reduce(total, dist.ReduceOp.SUM, f"summing {', '.join(values)}")
        return dict(zip(values, total.tolist(), strict=True))

    def vote(self, *, stop: bool, num_next: int, consumed: Sequence[int]) -> Vote:
        """Begin the vote of a step, or of some; read its result before the first takes effect.

        It comes before the steps and not after them, so that a rank that took a step knows the sums: one that
        died in between cannot take them along.

        Args:
            stop: whether this rank was asked to have all ranks stop after the first of these steps.
            num_next: how many steps the next vote shall be for; rank 0's counts.
            consumed: digests of the samples that this rank's losses take, as many from each, int64 each.

        Raises: PeerLost
        """
        wish = num_next if self._group.rank == 0 else 0
        values = torch.tensor([int(stop), wish, *consumed], dtype=torch.int64)
        return Vote(self, values, self._start(values, dist.ReduceOp.SUM, "voting on a step"))

    def gather(self, values: Sequence[int]) -> list[list[int]]:
        """Every rank's integers (int64, as many from each), by rank.

        Raises: PeerLost
        """
        own = torch.tensor(list(values), dtype=torch.int64)
        blocks = [torch.empty_like(own) for _ in range(self._group.world_size)]
        self._attempt(lambda: self._group.process_group.allgather([blocks], [own]), "comparing states")
        return [block.tolist() for block in blocks]

    def broadcast(
        self, source: int, tensors: Mapping[str, Tensor] | None, document: Any
    ) -> tuple[dict[str, Tensor], Any]:
        """What `source` gives: tensors (any dtype, to the CPU) and a document of JSON values, on all ranks.

        The others' arguments do not matter. Small tensors travel together, and nobody holds more than one
        such parcel beside the tensors.

        Raises: PeerLost
        """
        is_source = self._group.rank == source
        ours, line = dict(tensors or {}) if is_source else {}, b""
        if is_source:
            heads = [
                [name, str(one.dtype).removeprefix("torch."), list(one.shape)] for name, one in ours.items()
            ]
            line = json.dumps([heads, document]).encode()
        size = torch.tensor([len(line)], dtype=torch.int64)
        self._send(source, size)
        text = (
            torch.tensor(list(line), dtype=torch.uint8)
            if is_source
            else torch.empty(int(size), dtype=torch.uint8)
        )
        self._send(source, text)
        heads, document = json.loads(bytes(text.numpy().tobytes()))
        found = (
            [one.detach().cpu().contiguous() for one in ours.values()]
            if is_source
            else [torch.empty(shape, dtype=getattr(torch, dtype)) for _, dtype, shape in heads]
        )
        for parcel in _parcels([_bytes_of(one) for one in found]):
            self._send_together(source, parcel)
        return {name: one for (name, _, _), one in zip(heads, found, strict=True)}, document

    def _send_together(self, source: int, tensors: Sequence[Tensor]) -> None:
        """From `source` to all, in place; flat tensors of bytes."""
        packed = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
        for piece in packed.split(_PIECE_BYTES):
            self._send(source, piece)
        if len(tensors) > 1 and self._group.rank != source:
            for tensor, values in zip(tensors, packed.split([one.numel() for one in tensors]), strict=True):
                tensor.copy_(values)

    def average_buffers(self, module: nn.Module) -> None:
        """Average the module's floating buffers over the ranks, in place; others become those of rank 0.

        Raises: PeerLost
        """
        buffers = [buffer for _, buffer in module.named_buffers() if buffer.numel()]
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        others = [buffer for buffer in buffers if not buffer.is_floating_point()]
        if floating and self._group.world_size > 1:
            flat = torch.cat([buffer.detach().reshape(-1).double().cpu() for buffer in floating])
            flat.div_(self._group.world_size)
            self._reduce(flat, dist.ReduceOp.SUM, "averaging buffers")
            parts = flat.split([buffer.numel() for buffer in floating])
            for buffer, part in zip(floating, parts, strict=True):
                buffer.copy_(part.view_as(buffer))
        for buffer in others:
            self._copy_from_first(buffer)

    def same(self, what: str, value: int | str) -> None:
        """Check that all ranks hold the same value.

        Raises:
            TrainingError: they do not; names the ranks that differ from most, on every rank alike.
            PeerLost
        """
        if self._group.world_size == 1:
            return
        text = str(value).encode()
        shown = text[:_TEXT_BYTES].ljust(_TEXT_BYTES)
        block = torch.tensor(list(hashlib.sha256(text).digest() + shown), dtype=torch.uint8)
        blocks = [torch.empty_like(block) for _ in range(self._group.world_size)]
        self._attempt(lambda: self._group.process_group.allgather([blocks], [block]), f"comparing {what}")
        held = [bytes(one.tolist()) for one in blocks]
        usual, _ = Counter(held).most_common(1)[0]
        odd = [rank for rank, one in enumerate(held) if one != usual]
        if odd:
            listed = ", ".join(f"rank {rank} has {_text(held[rank])}" for rank in odd)
            raise TrainingError(
                f"{what} is not the same on all ranks: {listed}, the others have {_text(usual)}"
            )

    def _copy_from_first(self, buffer: Tensor) -> None:
        copy = buffer.detach().cpu().contiguous()
        self._send(0, copy)
        buffer.copy_(copy)

    def _send(self, source: int, tensor: Tensor) -> None:
        """From `source` to all, in place."""
        if self._group.world_size == 1 or not tensor.numel():
            return
        options = dist.BroadcastOptions()
        options.rootRank = source
        self._attempt(lambda: self._group.process_group.broadcast([tensor], options), "sending the state")

    def _reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType, what: str) -> None:
        work = self._start(tensor, op, what)
        if work is not None:
            self._wait(work, what)

    def _start(self, tensor: Tensor, op: dist.ReduceOp.RedOpType, what: str) -> dist.Work | None:
        if self._group.world_size == 1:
            return None
        try:
            return dist.all_reduce(tensor, op, group=self._group.process_group, async_op=True)
        except RuntimeError as error:
            raise self._lost(what, error) from error

    def _attempt(self, start, what: str) -> None:
        self.is_waiting = True
        try:
            groups.await_work(start(), self._group)
        except RuntimeError as error:
            raise self._lost(what, error) from error
        finally:
            self.is_waiting = False

    def _wait(self, work: dist.Work, what: str) -> None:
        self._attempt(lambda: work, what)

    def _lost(self, what: str, error: Exception) -> PeerLost:
        groups.break_groups()  # wakes peers that wait for this rank elsewhere
        return PeerLost(
            f"rank {self._group.rank} of {self._group.world_size}: {what} failed: {error}; "
            "another rank died or stopped answering"
        )


def _bytes_of(tensor: Tensor) -> Tensor:
    """The same memory, flat."""
    return tensor.reshape(-1).view(torch.uint8)


def _parcels(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In their order, as many at a time as make a piece; one that is larger by itself."""
    parcel: list[Tensor] = []
    num_bytes = 0
    for tensor in tensors:
        if parcel and num_bytes + tensor.numel() > _PIECE_BYTES:
            yield parcel
            parcel, num_bytes = [], 0
        parcel.append(tensor)
        num_bytes += tensor.numel()
    if parcel:
        yield parcel


def _text(block: bytes) -> str:
    return block[_DIGEST_BYTES:].decode(errors="replace").strip()
