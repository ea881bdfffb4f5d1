"""Messages between the ranks of one group: the only code here that calls process groups.

Each message is a header and a body in one piece of memory, sent in one piece. The header says which step,
bucket, stage, model layout and compressor it belongs to, so that a rank that does something else is named,
and the first parameter that was not finite. Over gloo a message is received into as much memory as any
scheme's message for the bucket takes, so that one of another size is read too, and told: see `Message`.

Who sends when was measured on 4 ranks behind 100 Mbit/s links, the messages of an int8 exchange of 10.2 M
parameters (15.5 MB for each rank, 1293 ms with the frames' own bytes). Receives are posted before anything is
encoded, because gloo asks the receiver before it sends, and its question would wait behind the data. Sends go
out in rotated order, rank + 1 first, in messages of 256 KiB, all at once: 1304 ms; one or two at a time, from
a thread of their own, gained nothing (1312 ms). With the congestion control BBR, the default of some
machines, each of these took 1440 ms or more, so `groups.quicken` puts another in its place.

Shapes: n ranks, P bytes of a body.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eagleray.compression import notices
from eagleray.compression.messages import (
    ALIGN,
    FIELDS,
    HEADER,
    MAGIC,
    Blocks,
    Message,
    Step,
    describe,
    ring_bytes,
    with_size,
)
from eagleray.compression.waits import Waits
from eagleray.errors import EaglerayError, InputError, PeerLost, TrainingError
from eagleray.groups import Group

__all__ = ["HEADER", "Message", "Pending", "Step", "Wire", "ring_bytes"]

AT_ONCE = 2
"""Buckets in work at a time: a third would wait for the link behind the second anyway. Over NCCL one:
what is launched there runs in order."""
_AGREEMENT = struct.Struct("<QQI44s")
_MAX_STAGES = 1 << 15
_ROOM = 1 << 20
"""Bytes: a slice of any scheme for a bucket that is smaller than one, with what belongs to it."""


class Pending:
    """Messages on their way."""

    def __init__(self, wire: Wire, step: Step, stage: int, bad_parameter: int):
        self._wire, self._step, self._stage = wire, step, stage
        self._works: list[tuple[int | None, Any]] = []
        self._sums: list[tuple[None, Any]] = []
        self._incoming: list[tuple[int, Message]] = []
        self.bad_parameter = bad_parameter
        """The largest of this rank's and, after `wait`, of the messages received; -1: all finite."""
        self.since_s = 0.0
        """When `wait` began, by `time.perf_counter`."""

    def wait(self) -> None:
        """Return when everything has been received.

        Raises:
            PeerLost: another rank died or did not answer in time.
            TrainingError: another rank sent what belongs to another step, bucket, model or compressor, to
                this one or to a third.
        """
        self._wire.waiting, self.since_s = self, time.perf_counter()
        self._wait(self._works)
        for peer, message in self._incoming:
            bad = self._wire.read(self._step, self._stage, peer, message)
            self.bad_parameter = max(self.bad_parameter, bad)
        self._wire.waiting = None
        self._wait(self._sums)  # in which a rank that sends otherwise, as its header has said, takes no part
        for held in (self._works, self._incoming, self._sums):
            held.clear()
        self._wire.waited_s += time.perf_counter() - self.since_s

    def missing(self) -> list[int]:
        """Peers of whose message nothing has come yet (over NCCL, where that does not show, all).

        From any thread.
        """
        wanted = (self._step.number, self._step.bucket, self._stage)
        return [
            peer
            for peer, message in self._incoming
            if self._wire.is_nccl or message.header()[1:4] != wanted  # a message begins with its header
        ]

    def _wait(self, works: Sequence[tuple[int | None, Any]]) -> None:
        for peer, work in works:
            try:
                self._wire.waits.on(work)
            except RuntimeError as error:  # what torch raises for a lost connection and for a time-out
                raise self._wire.failed(error, "" if peer is None else f"rank {peer}: ") from error


class Wire:
    """One rank's end of a group. For one thread, the engine's."""

    def __init__(self, group: Group, layout: int = 0, scheme: str = ""):
        """Wrap the group.

        Args:
            group: nobody else may use it.
            layout: the model layout's digest, for the headers.
            scheme: the compressor's name, likewise.
        """
        self.group, self.rank, self.world_size = group, group.rank, group.world_size
        self.layout, self.scheme = layout, scheme
        self.sent_bytes = 0
        """All that was handed to sends and to sums (2 (n-1) / n of what is summed), headers included."""
        self.payload_bytes = 0
        """The same without headers."""
        self.waits, self.waited_s = Waits(), 0.0
        """Time in `Pending.wait`."""
        self.waiting: Pending | None = None
        """In whose `wait` this rank is now."""
        self.probe_bytes, self.probe_s = 0, 0.0
        """Sent, headers included, and spent within `aside` (probes, states); not in the sums above."""
        self.is_nccl = group.backend == "nccl"
        self.at_once = 1 if self.is_nccl else AT_ONCE
        """Buckets in work at a time."""
        self.peers = [(self.rank + i) % self.world_size for i in range(1, self.world_size)]
        """The other ranks, in the order in which this one sends to them."""
        self._blocks = Blocks()
        self._expected: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        self._sends: deque[tuple[int, Any]] = deque()
        self._headers: dict[tuple[int, int], tuple[list[Message | None], list[Message | None]]] = {}

    def make_room(self, numel: int) -> None:
        """Messages made from now on are of a bucket of so many elements, or of a smaller one."""
        if not self.is_nccl:  # uncompressed in one piece is the largest; indices and scales add to small ones
            self._blocks.room = max(self._blocks.room, 5 * numel + _ROOM)

    def message(self, num_bytes: int, device: torch.device | str = "cpu") -> Message:
        """A message with a body of so many bytes, zeros."""
        memory = self._take(HEADER + num_bytes, device)
        return Message(memory[: HEADER + num_bytes], window=memory)

    def messages(
        self, sizes: Sequence[int], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, list[Message]]:
        """A buffer, uint8, and in it a message for each size, so that one pass of a codec fills them all."""
        starts, end = [], 0
        for size in sizes:
            starts.append(end)
            end += -(-(HEADER + size) // ALIGN) * ALIGN
        memory = self._take(end, device)
        return memory[:end], [
            Message(memory[start : start + HEADER + size], start, memory[start:])
            for start, size in zip(starts, sizes, strict=True)
        ]

    def _take(self, num_bytes: int, device: torch.device | str) -> Tensor:
        """uint8, so many zeros, and on the CPU room behind them."""
        if torch.device(device).type == "cpu":
            return self._blocks.take(num_bytes)
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def expect(self, step: Step, stage: int, incoming: Sequence[Message | None]) -> None:
        """Say early where the messages of a later `swap` or `gather` will go; that one must name the same.

        It costs nothing where it is not needed, and keeps the peers from waiting where it is.
        """
        if not self.is_nccl:  # there a receive would block the stream that the send waits on
            self._expected[step.bucket, stage] = self._receive(step, stage, incoming)

    def swap(
        self,
        step: Step,
        stage: int,
        outgoing: Sequence[Message | None],
        incoming: Sequence[Message | None],
        bad_parameter: int = -1,
    ) -> Pending:
        """Send to, and receive from, each peer that there is a message for; returns at once.

        Args:
            step: which bucket of which step.
            stage: what tells the swaps of one bucket apart; as large on all ranks, below 32768.
            outgoing: by rank; their bodies must stay as they are until the next step.
            incoming: by rank.
            bad_parameter: index of a parameter of the bucket that was not finite here, or -1.

        Raises: PeerLost: a peer's connection is gone.
        """
        pending = Pending(self, step, stage, bad_parameter)
        header = self._header(step, stage, bad_parameter)
        for peer in self.peers:
            if (message := outgoing[peer]) is not None:
                message.stamp(with_size(header, message.body.numel()))
                self._count(message.data.numel(), message.body.numel())
        try:
            if self.is_nccl:
                pending._works += self._swap_at_once(outgoing, incoming)
            else:
                early = self._expected.pop((step.bucket, stage), None)
                pending._works += self._receive(step, stage, incoming) if early is None else early
                for peer in self.peers:
                    if (message := outgoing[peer]) is not None:
                        work = self.group.process_group.send([message.data], peer, _tag(step, stage))
                        self._sends.append((step.number, work))
        except RuntimeError as error:
            raise self.failed(error) from error
        pending._incoming += [(peer, m) for peer in self.peers if (m := incoming[peer]) is not None]
        return pending

    def gather(
        self,
        step: Step,
        stage: int,
        own: Message | None,
        others: Sequence[Message | None],
        bad_parameter: int = -1,
    ) -> Pending:
        """Send the same message to all peers, and receive theirs: see `swap`."""
        outgoing = [None if peer == self.rank else own for peer in range(self.world_size)]
        return self.swap(step, stage, outgoing, others, bad_parameter)

    def sum(self, step: Step, stage: int, tensor: Tensor, bad_parameter: int = -1) -> Pending:
        """Sum a tensor over the ranks, in place; beside it goes a header without a body to each peer.

        The order in which a sum adds floats depends on the place in the tensor; integers do not mind.
        Sums of different buckets must start in the same order on all ranks: a plan may start one only before
        its first yield.
        """
        outgoing, incoming = self._bodiless(step.bucket, stage, tensor.device)
        pending = self.swap(step, stage, outgoing, incoming, bad_parameter)
        if self.world_size > 1:
            try:
                pending._sums.append((None, self.group.process_group.allreduce([tensor])))
            except RuntimeError as error:
                raise self.failed(error) from error
            sent = ring_bytes(tensor.nbytes, self.world_size)
            self._count(sent, sent)
        return pending

    def settle(self, step_number: int) -> None:
        """Wait for the sends of earlier steps, whose buffers may be written again afterwards."""
        while self._sends and self._sends[0][0] < step_number:
            try:
                self.waits.on(self._sends.popleft()[1])
            except RuntimeError as error:
                raise self.failed(error) from error

    def finish(self) -> None:
        """Wait for all sends; those to a peer that has gone are over as well."""
        while self._sends:
            with suppress(RuntimeError):
                self.waits.on(self._sends.popleft()[1])

    @property
    def num_unsettled(self) -> int:
        """Sends that nobody has waited for yet."""
        return len(self._sends)

    def read(self, step: Step, stage: int, peer: int, message: Message) -> int:
        """The bad parameter in a received message. Raises: TrainingError: it is not the one expected."""
        fields = message.header()
        found = (*fields[:5], *fields[6:])
        expected = FIELDS.unpack(with_size(self._header(step, stage, -1), message.body.numel()))
        if found != (*expected[:5], *expected[6:]):
            text = (
                f"rank {peer} sent {describe(fields)}, but rank {self.rank} is at {describe(expected)}; "
                "all ranks must run the same backward passes with the same model and compression"
            )
            notices.leave(self.group.process_group, text)
            raise TrainingError(text)
        return fields[5]

    def failed(self, error: RuntimeError, where: str = "") -> EaglerayError:
        """What to raise for an operation that raised `error`: a peer is gone, or has left for a reason."""
        reason = notices.find(self.group.process_group)
        if reason is not None:
            return TrainingError(reason)
        return PeerLost(f"{where}{error}; another rank died or stopped answering")

    def agree(self, what: str, digest: int, numel: int, settings: str = "") -> None:
        """Compare the model and the compression of all ranks; all of them must call it.

        Args:
            what: the compression, as text; the first 44 bytes count.
            digest: of the model's layout.
            numel: elements of the model, for the message.
            settings: of the compression, as text of any length.

        Raises: InputError: some rank has others; it is named.
        """
        own = _AGREEMENT.pack(digest, numel, zlib.crc32(settings.encode()), what.encode()[:44])
        said = [_AGREEMENT.unpack(block) for block in self._all(own, "compare its model with the others'")]
        for rank, theirs in enumerate(said):
            if theirs != said[0]:
                raise InputError(
                    f"rank {rank} has {_describe_model(theirs)}, but rank 0 has {_describe_model(said[0])}; "
                    "give all ranks the same model and the same compression"
                )

    @contextmanager
    def aside(self) -> Generator[None, None, None]:
        """What is sent and waited for within is no gradient: it counts apart."""
        sent, payload, waited = self.sent_bytes, self.payload_bytes, self.waited_s
        started = time.perf_counter()
        yield
        self.probe_bytes += self.sent_bytes - sent
        self.probe_s += time.perf_counter() - started
        self.sent_bytes, self.payload_bytes, self.waited_s = sent, payload, waited

    def share(self, own: bytes) -> list[bytes]:
        """What each rank has to say, by rank; all of them must call it, with nothing else on its way.

        Raises: PeerLost: a rank did not answer.
        """
        doing = "hear what the others measured"
        sizes = [int.from_bytes(size, "little") for size in self._all(len(own).to_bytes(8, "little"), doing)]
        said = self._all(own.ljust(max(sizes), b"\0"), doing)
        return [block[:size] for block, size in zip(said, sizes, strict=True)]

    def _all(self, own: bytes, doing: str) -> list[bytes]:
        """Every rank's block, all of one size."""
        device = torch.device("cuda", torch.cuda.current_device()) if self.is_nccl else torch.device("cpu")
        block = torch.frombuffer(bytearray(own), dtype=torch.uint8).to(device)
        blocks = [torch.empty_like(block) for _ in range(self.world_size)]
        try:
            self.waits.on(self.group.process_group.allgather([blocks], [block]))
        except RuntimeError as error:
            raise self.failed(error, f"rank {self.rank} could not {doing}: ") from error
        return [one.cpu().numpy().tobytes() for one in blocks]

    def _receive(self, step: Step, stage: int, incoming: Sequence[Message | None]) -> list[tuple[int, Any]]:
        """Post receives, in the order in which the peers send."""
        works = []
        for peer in reversed(self.peers):
            if (message := incoming[peer]) is not None:
                try:
                    work = self.group.process_group.recv([message.window], peer, _tag(step, stage))
                except RuntimeError as error:
                    raise self.failed(error, f"rank {peer}: ") from error
                works.append((peer, work))
        return works

    def _swap_at_once(
        self, outgoing: Sequence[Message | None], incoming: Sequence[Message | None]
    ) -> list[tuple[None, Any]]:
        """NCCL: one launch for all."""
        pairs = [(dist.irecv, incoming[p], p) for p in self.peers] + [
            (dist.isend, outgoing[p], p) for p in self.peers
        ]
        operations = [
            dist.P2POp(function, message.data, group=self.group.process_group, group_peer=peer)
            for function, message, peer in pairs
            if message is not None
        ]
        return [(None, work) for work in dist.batch_isend_irecv(operations)] if operations else []

    def _bodiless(
        self, bucket: int, stage: int, device: torch.device
    ) -> tuple[list[Message | None], list[Message | None]]:
        """Messages of headers only, to and from each peer."""
        key = (bucket, stage)
        if key not in self._headers:
            self._headers[key] = tuple(  # pyright: ignore[reportArgumentType]
                [None if p == self.rank else self.message(0, device) for p in range(self.world_size)]
                for _ in range(2)
            )
        return self._headers[key]

    def _header(self, step: Step, stage: int, bad_parameter: int) -> bytes:
        return FIELDS.pack(
            MAGIC, step.number, step.bucket, stage, self.layout, bad_parameter, 0, self.scheme.encode()[:32]
        )

    def _count(self, sent: int, payload: int) -> None:
        self.sent_bytes += sent
        self.payload_bytes += payload


def _tag(step: Step, stage: int) -> int:
    assert stage < _MAX_STAGES, stage
    return step.bucket * _MAX_STAGES + stage


def _describe_model(said: tuple[Any, ...]) -> str:
    digest, numel, settings, what = said
    name = what.rstrip(b"\0").decode(errors="replace")
    return f"{name} and a model of {numel} elements (settings {settings:08x}, layout {digest:016x})"
