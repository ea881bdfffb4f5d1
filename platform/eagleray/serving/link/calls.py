"""What a replica's handler is given: one call for each stream, to be ended exactly once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from eagleray.serving.link import tensors
from eagleray.serving.link.frames import (
    MAX_STREAM,
    PLACE,
    RETRY,
    SLOT,
    TIMINGS,
    Buffer,
    Kind,
    Timings,
    text_bytes,
)
from eagleray.serving.link.ring import MIN_RING_BYTES

if TYPE_CHECKING:
    from eagleray.serving.link.session import Session


_RESULT = Kind.RESULT


class Handler(Protocol):
    """Does the replica's work. Every method is called in the server's loop, and must not block it."""

    def infer(self, call: InferCall) -> None:
        """Take a call; it may be ended at once, or later. What this raises fails the call."""
        ...

    def generate(self, call: GenerateCall) -> None:
        """Take a call; it may be ended at once, or later. What this raises fails the call."""
        ...

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more. It is to be ended all the same, once nothing reads its values."""
        ...

    def flush(self) -> None:
        """All calls of one read were given: the moment to run them together."""
        ...


class Call:
    """One stream, as the replica sees it. All methods in the server's loop; after its end they do nothing."""

    __slots__ = (
        "_session",
        "_values",
        "deadline_s",
        "is_cancelled",
        "num_bytes",
        "received_s",
        "slot",
        "stream",
    )

    def __init__(
        self, session: Session, stream: int, received_s: float, deadline_s: float, values: Buffer
    ) -> None:
        self._session: Session | None = session
        self._values = values
        self.stream, self.received_s, self.deadline_s = stream, received_s, deadline_s
        self.slot = -1
        """Of the ring, where its values lie there."""
        self.num_bytes = len(values)
        """Of this process's own memory."""
        self.is_cancelled = False
        """Whether the gateway does not want it any more, or is gone."""

    def refuse(self, message: str) -> None:
        """End it: its values were wrong."""
        self._finish(Kind.REFUSED, (text_bytes(message),))

    def overload(self, message: str, retry_after_s: float) -> None:
        """End it: there is no room; try again later."""
        retry_ms = min(MAX_STREAM, max(0, round(retry_after_s * 1000)))
        self._finish(Kind.OVERLOADED, (RETRY.pack(retry_ms), text_bytes(message)))

    def fail(self, message: str) -> None:
        """End it: the model broke."""
        self._finish(Kind.FAILED, (text_bytes(message),))

    def expire(self, message: str = "the deadline passed") -> None:
        """End it: it was not computed, or nobody waited for it any more."""
        self._finish(Kind.EXPIRED, (text_bytes(message),))

    def drop(self) -> None:
        """The session's: the gateway is gone."""
        self._session, self._values, self.is_cancelled = None, b"", True

    def _finish(self, kind: Kind, parts: Sequence[Buffer], flags: int = 0) -> None:
        if (session := self._session) is not None:
            self._session, self._values = None, b""
            session.finish(self, kind, parts, flags)


class InferCall(Call):
    """Tensors in, tensors out."""

    __slots__ = ("_behind", "_head")

    def put_in_slot(self, slot: int, head: bytes, end: int) -> None:
        """The session's: its values lie in a slot of the ring, up to `end`, and this is their head."""
        self.slot, self._head, self.num_bytes = slot, head, 0
        # The gateway reads the values once more where this replica dies before its answer is sent: they stay.
        self._behind = -(-end // tensors.ALIGN) * tensors.ALIGN

    def inputs(self) -> dict[str, tensors.Array]:
        """The tensors: views of the frame, or of the ring, whose values must not be used after the end.

        Raises:
            TensorError: they are none, to be refused; or the call has ended.
        """
        if self.slot < 0:
            return tensors.read(self._values)
        return tensors.read_apart(self._head, self._values)

    def answer(self, outputs: Sequence[Buffer], timings: Timings) -> None:
        """End it with what `tensors.write` gave, which must not change any more."""
        packed = _packed(timings)
        if self.slot >= 0 and (session := self._session) is not None:
            in_slot = _in_slot(outputs, session.whole_slot(self.slot), self._behind)
            if in_slot is not None:
                head, length = in_slot
                place = PLACE.pack(self.slot, self._behind, length)
                self._finish(_RESULT, (packed, place, head), SLOT)
                return
        self._finish(_RESULT, (packed, *outputs))


class GenerateCall(Call):
    """A request in, pieces out as they are made."""

    __slots__ = ("request",)

    def __init__(
        self, session: Session, stream: int, received_s: float, deadline_s: float, request: bytes
    ) -> None:
        super().__init__(session, stream, received_s, deadline_s, request)
        self.request = request

    def piece(self, piece: bytes, tokens: int) -> None:
        """Send what came next, and how many tokens the model has made with it."""
        if self._session is not None:
            self._session.piece(self, piece, tokens)

    def end(self, body: bytes, timings: Timings) -> None:
        """End it; `body` says why it ended and what it took."""
        self._finish(Kind.RESULT, (_packed(timings), body))


def _packed(timings: Timings) -> bytes:
    try:
        return TIMINGS.pack(*timings, 0, 0)
    except struct.error:  # out of bounds, or no whole numbers
        *times_us, batch_size = (max(0, round(value)) for value in timings)
        return TIMINGS.pack(
            *(min(time_us, MAX_STREAM) for time_us in times_us), min(batch_size, 0xFFFF), 0, 0
        )


def _in_slot(outputs: Sequence[Buffer], slot: memoryview, begin: int) -> tuple[Buffer, int] | None:
    """Put an answer's values into a slot from `begin` on: their head and their bytes.

    None where they are few, or there is no room for them.
    """
    head, *values = outputs
    length = sum(map(len, values))
    if not MIN_RING_BYTES <= length <= len(slot) - begin:
        return None
    at = begin
    for part in values:
        slot[at : at + len(part)] = part
        at += len(part)
    return head, length
