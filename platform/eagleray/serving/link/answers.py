"""`Answer`: what a link's request ends with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from eagleray.serving.link.frames import TOO_LARGE, Kind, Timings
from eagleray.serving.link.ring import Slot


class Answer(NamedTuple):
    """A stream's end. `kind` says which of the rest there is."""

    kind: Kind
    """RESULT; REFUSED, OVERLOADED, FAILED, EXPIRED: the replica's word; GOAWAY: it did not begin; LOST."""
    body: memoryview | None = None
    """Of a RESULT: tensors as on the wire, or what a generation ends with; good until `release`."""
    timings: Timings | None = None
    message: str = ""
    retry_after_s: float = 0.0
    head: bytes = b""
    """Of a RESULT in a slot: the head of the tensors, whose values `body` then is alone."""
    slot: Slot | None = None
    """Of a RESULT in it, or of a request in it that `is_for_another`."""

    @property
    def is_for_another(self) -> bool:
        """Whether the request is to go another way: it did not begin, or a link cannot carry its answer.

        What it was sent with is read once more, so that its slot is kept until `release`.
        """
        if self.kind == Kind.FAILED:
            return self.message.startswith(TOO_LARGE)
        return self.kind == Kind.GOAWAY

    def release(self) -> None:
        """Be done with it; to be called for each answer to `infer_in_slot`, and harmless elsewhere."""
        if self.slot is not None:
            self.slot.release()


OnAnswer = Callable[[Answer], None]
