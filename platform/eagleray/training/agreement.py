"""What the ranks agree on: sums of metrics, votes, averaged buffers, equal values. Nothing else sends those.

All ranks must call the same methods in the same order, on a group that nothing else uses.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eagleray import groups
from eagleray.errors import PeerLost, TrainingError
from eagleray.groups import Group

_DIGEST_BYTES, _TEXT_BYTES = 32, 64


class Pending:
    """A vote on its way."""

    def __init__(self, agreement: Agreement, names: tuple[str, ...], values: Tensor, work: dist.Work | None):
        self._agreement, self._names, self._values, self._work = agreement, names, values, work

    def result(self) -> dict[str, float]:
        """The largest value of each name over the ranks; waits for it if need be.

        Raises: PeerLost
        """
        if self._work is not None:
            self._agreement._wait(self._work, f"voting on {', '.join(self._names)}")
            self._work = None
        return dict(zip(self._names, self._values.tolist(), strict=True))


class Agreement:
    """Agrees over `group` (gloo, CPU tensors)."""

    def __init__(self, group: Group):
        self._group = group

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum of each value over the ranks, in float64. All ranks give the same names in the same order.

        Raises: PeerLost
        """
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        self._reduce(total, dist.ReduceOp.SUM, f"summing {', '.join(values)}")
        return dict(zip(values, total.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set.

        Raises: PeerLost
        """
        return self.vote({"flag": float(flag)}).result()["flag"] > 0

    def vote(self, values: Mapping[str, float]) -> Pending:
        """Issue a vote without waiting: read its result a step later, and it costs no time."""
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        work = self._start(tensor, dist.ReduceOp.MAX, f"voting on {', '.join(values)}")
        return Pending(self, tuple(values), tensor, work)

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
        if self._group.world_size == 1:
            return
        copy = buffer.detach().cpu().contiguous()
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._attempt(lambda: self._group.process_group.broadcast([copy], options), "copying buffers")
        buffer.copy_(copy)

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
        try:
            start().wait()
        except RuntimeError as error:
            raise self._lost(what, error) from error

    def _wait(self, work: dist.Work, what: str) -> None:
        self._attempt(lambda: work, what)

    def _lost(self, what: str, error: Exception) -> PeerLost:
        groups.break_groups()  # wakes peers that wait for this rank elsewhere
        return PeerLost(
            f"rank {self._group.rank} of {self._group.world_size}: {what} failed: {error}; "
            "another rank died or stopped answering"
        )


def _text(block: bytes) -> str:
    return block[_DIGEST_BYTES:].decode(errors="replace").strip()
