"""`Line`: the way to one application, over links to its replicas; and how one request takes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eagleray.serving.admission.gate import Gate
from eagleray.serving.link import tensors
from eagleray.serving.link.answers import Answer, OnAnswer
from eagleray.serving.link.frames import Kind
from eagleray.serving.link.pool import Pool
from eagleray.serving.link.retries import Request
from eagleray.serving.link.ring import MIN_RING_BYTES
from eagleray.serving.routes import Target

Arrays = Mapping[str, np.ndarray]
_log = logging.getLogger(__name__)
# An attribute of an enumeration costs Python 3.11 five times what a global does.
_RESULT = Kind.RESULT


@dataclass(eq=False)
class Line:
    """The way to one application."""

    app: str
    pool: Pool
    max_ongoing: Sequence[int] = ()
    """Requests that each replica takes at a time."""
    gate: Gate | None = None
    """Where requests wait for their turn, from the first one on."""
    target: Target | None = None
    """As it was when the gate was last asked for."""
    num_by_lane: int = 0
    """Requests of the fast lane that a link has carried."""
    num_by_serve: int = 0
    """Requests that no link carried."""
    detour: str = ""
    """Why requests go by Serve's handles; empty where they do not."""

    @property
    def num_running(self) -> int:
        """Replicas."""
        return len(self.max_ongoing)

    def say(self, detour: str) -> None:
        """Log where requests go, once for each change."""
        if detour == self.detour:
            return
        self.detour = detour
        if detour:
            _log.warning("requests to %s go by Serve's handles, more slowly: %s", self.app, detour)
        else:
            _log.warning("requests to %s go over links again", self.app)

    @property
    def is_awaited(self) -> bool:
        """Whether a request waits for a link: no replica runs, or of those that do none has failed yet."""
        return self.pool.choose() is None and (not self.max_ongoing or self.pool.is_connecting)

    def why_none(self) -> str:
        """Why there is no link to choose."""
        if not self.num_running:
            return "it has no replica now"
        problems = self.pool.problems()
        return next(iter(problems.values()), "") or "no link to its replicas is ready yet"


def goes_by_serve(line: Line, request: Request | None, answer: Answer) -> bool:
    """Whether Serve is to have it: no replica has begun it, or one has and there may be a second try."""
    if answer.kind == _RESULT:
        return False
    if answer.kind == Kind.GOAWAY:
        return True
    if _num_begun(request, answer) > 1:
        return False
    return answer.is_for_another or (answer.kind == Kind.LOST and line.pool.budget.spend())


def is_second_try(request: Request | None, answer: Answer) -> bool:
    """Whether what goes by Serve is begun for the second time there, which is the last."""
    return _num_begun(request, answer) > 0


def _num_begun(request: Request | None, answer: Answer) -> int:
    """How many replicas have begun it, for all that their links know."""
    was_lost = request is not None and request.was_lost
    return was_lost + (answer.kind != Kind.GOAWAY)


def send(
    pool: Pool, inputs: Arrays, deadline_ms: int, take: OnAnswer, *, is_lent: bool = False
) -> Request | None:
    """The request on its way; None: there is no link, or none that carries it.

    Where their memory `is_lent`, the inputs may change once the request is over, though it waits in a socket.
    """
    link = pool.choose()
    if link is None:
        return None
    try:
        parts = tensors.write(inputs)
    except tensors.TensorError:
        return None  # the model says what it has against them
    size = sum(map(len, parts))
    if size >= MIN_RING_BYTES:
        if size >= link.max_frame_bytes:
            return None
        if (slot := link.take_slot()) is not None:
            head, *values = parts
            if (length := tensors.put(slot.view, values)) is not None:
                return pool.infer_in_slot(link, slot, 0, length, bytes(head), deadline_ms, take)
            slot.release()
    if is_lent:
        parts = [bytes(part) for part in parts]
    return pool.infer(parts, deadline_ms, take, link=link)
