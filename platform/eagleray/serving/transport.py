"""`Transport`: how the ingress reaches the replicas of a model version, whatever carries the bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from eagleray.errors import InputError, ServiceError

if TYPE_CHECKING:
    import numpy as np

    from eagleray.protocol.generation import GenerationChunk, GenerationRequest
    from eagleray.serving.admission.ticket import Ticket
    from eagleray.serving.link.frames import Timings
    from eagleray.serving.routes import Target


class Outputs(dict[str, "np.ndarray"]):
    """A model's outputs by name, and what took the replica the time, where it has said so."""

    def __init__(self, outputs: Mapping[str, np.ndarray], timings: Timings | None) -> None:
        super().__init__(outputs)
        self.timings = timings


class Overloaded(ServiceError):
    """The model version takes no more requests now; `retry_after_s` is an honest guess of when it will."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BadInput(InputError):
    """The replica refused the values: what it said is for the caller."""


class ReplicaFailed(ServiceError):
    """The replica broke, or went away, while it worked on the request.

    `retry_after_s`, where there is one, says that another replica will do; None: it would fail there too.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


ANOTHER_REPLICA_S = 0.5
"""A guess: by then requests no longer go to the replica that is lost."""


def what(target: Target) -> str:
    """For messages."""
    return f"model {target.name!r} version {target.version}"


def full(target: Target, retry_after_s: float) -> Overloaded:
    """It takes no more now."""
    return Overloaded(
        f"{what(target)} has {target.max_queued} requests waiting, which is all it takes; try again in "
        f"{retry_after_s:.0f} s",
        retry_after_s,
    )


def went_away(target: Target, why: str) -> ReplicaFailed:
    """The replica is no more; another one will do."""
    return ReplicaFailed(f"{what(target)}: its replica went away ({why}); try again", ANOTHER_REPLICA_S)


def failed(target: Target, why: str) -> ReplicaFailed:
    """The model broke over it, and would again."""
    return ReplicaFailed(f"{what(target)} failed: {why}")


class Transport(Protocol):
    """Carries one request to a replica of `target` and its answer back; safe for many requests at once.

    A target that is scaled to zero is started by the call, which waits; the wait is part of `timeout_s`.
    """

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, np.ndarray],
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
    ) -> dict[str, np.ndarray]:
        """The card's outputs for `inputs` (raw values, batch first; BYTES as object arrays of str).

        They may be `Outputs`. `ticket`: of the request, which goes by its key where a replica is waited for.

        Raises:
            BadInput: the replica refused the values.
            Overloaded: the queue is full.
            ReplicaFailed: the replica broke.
            TimeoutError: no answer within `timeout_s`.
        """
        ...

    def generate(
        self,
        target: Target,
        request: GenerationRequest,
        *,
        key: str = "",
        timeout_s: float | None = None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        """Pieces of text as they come; the last has a `finish_reason`. Closed early, the replica stops.

        Args:
            target: The version.
            request: What is asked for.
            key: The id of the API key that asks; the replica makes the texts of several keys in turns.
            timeout_s: How long whoever asks waits for the first piece, where a replica has to be started;
                None: until he closes this.
            ticket: As for `infer`.

        Raises, at the first piece or any later: as `infer`.
        """
        ...


class Fallback(Transport, Protocol):
    """The transport of what no link carries."""

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, np.ndarray],
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
        is_second: bool = False,
    ) -> dict[str, np.ndarray]:
        """As Transport; `is_second`: it was lost once, and is not to be begun more than once more."""
        ...

    def expect(self, starts: Mapping[str, float]) -> None:
        """How long each application took to start."""
        ...

    def keep_only(self, apps: Collection[str]) -> None:
        """There are no others any more."""
        ...
