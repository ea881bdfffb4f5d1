"""`ServeTransport`: requests go to replicas by Serve's own deployment handles (Ray 2.60).

By gRPC, which takes half as long as Ray's actor calls; what is too large for its messages goes by those.
The limit is 4 MiB where the environment of Serve's processes does not raise it, as `eagleray up` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eagleray.serving.model_app import DEPLOYMENT, REFUSED
from eagleray.serving.transport import BadInput, Overloaded, failed, full, went_away, what
from eagleray.serving.waiting import FIRST_START_S, Waiting

if TYPE_CHECKING:
    import numpy as np

    from eagleray.protocol.generation import GenerationChunk, GenerationRequest
    from eagleray.serving.admission.ticket import Ticket
    from eagleray.serving.routes import Target


@dataclass
class Line:
    """The way to one application."""

    root: Any
    """Serve's handle, of which the others are made."""
    infer: Any
    infer_large: Any
    generate: Any
    waiting: Waiting


class ServeTransport:
    """A Transport. For one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._starts: Mapping[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, np.ndarray],
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
        is_second: bool = False,
    ) -> dict[str, np.ndarray]:
        """As Transport.

        `is_second`: a replica that was lost had it already. Another one is asked for it once, which this is.
        """
        line = self._line(target.app)
        with _under_way(line, target):
            async with asyncio.timeout(timeout_s):
                answer = await _ask(line, dict(inputs), is_second=is_second)
        if REFUSED in answer:
            raise BadInput(answer[REFUSED])
        return answer

    async def generate(
        self,
        target: Target,
        request: GenerationRequest,
        *,
        key: str = "",
        timeout_s: float | None = None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        """As Transport."""
        line = self._line(target.app)
        with _under_way(line, target):
            response = line.generate.remote(request, key)
            try:
                async for chunk in response:
                    yield chunk
            except BaseException:
                response.cancel()
                raise

    def expect(self, starts: Mapping[str, float]) -> None:
        """Take down how long each application took to start: what a full queue is told at first."""
        self._starts = starts

    def keep_only(self, apps: Collection[str]) -> None:
        """Close the lines to all other applications: each costs a long poll to Serve."""
        for app in set(self._lines) - set(apps):
            line = self._lines.pop(app)
            task = asyncio.get_running_loop().create_task(line.root.shutdown_async())
            self._closing.add(task)  # a task that nobody holds may vanish before its end
            task.add_done_callback(self._closing.discard)

    def _line(self, app: str) -> Line:
        if app not in self._lines:
            from ray.serve.handle import DeploymentHandle

            # Not by serve.get_deployment_handle: it asks Serve's controller, which may be away, and blocks.
            root = DeploymentHandle(DEPLOYMENT, app)
            self._lines[app] = Line(
                root,
                root.options(method_name="infer", _by_reference=False),
                root.options(method_name="infer", _by_reference=True),
                root.options(method_name="generate", stream=True, _by_reference=False),
                Waiting(start_s=self._starts.get(app, FIRST_START_S)),
            )
        return self._lines[app]


async def _ask(line: Line, inputs: Mapping[str, Any], *, is_second: bool) -> Any:
    """The answer of a replica; of another one where the first dies over it: asking twice changes nothing.

    Of a replica that died before it had the request Serve asks another by itself.
    """
    from ray.exceptions import RayActorError

    handle = line.infer if _num_bytes(inputs) < _largest_message() else line.infer_large
    for is_last in (False, True):
        response = handle.remote(inputs)
        try:
            return await response
        except RayActorError:
            if is_last or is_second:
                raise
        except Exception as error:
            if is_last or not _is_too_large(error):
                raise
            handle = line.infer_large
        except BaseException:
            response.cancel()  # else the replica works on it, and autoscaling counts it
            raise
    raise AssertionError


def _num_bytes(inputs: Mapping[str, np.ndarray]) -> int:
    """About as many as they have on the way."""
    return sum(
        4 * sum(map(len, array)) if array.dtype.hasobject else array.nbytes for array in inputs.values()
    )


def _largest_message() -> int:
    """Bytes of arrays that gRPC takes with certainty."""
    from ray.serve._private.constants import RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH

    return RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH * 3 // 4


def _is_too_large(error: Exception) -> bool:
    """Whether the answer, or the request after all, did not fit into a message."""
    import grpc

    return isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def _under_way(line: Line, target: Target) -> Iterator[None]:
    """Count the request, and give what Serve raises our names."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    waiting, is_answered = line.waiting, False
    waiting.begin(time.monotonic())
    try:
        yield
        is_answered = True
    except BackPressureError:
        raise full(target, waiting.retry_after_s(time.monotonic())) from None
    except TimeoutError:
        raise
    except Exception as error:
        if isinstance(error, RayError | RayServeException) and not isinstance(error, RayTaskError):
            raise went_away(target, type(error).__name__) from error
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, BadInput):
            raise BadInput(str(cause)) from None
        if isinstance(cause, Overloaded):  # the replica's own word, of texts
            raise Overloaded(f"{what(target)}: {cause}", cause.retry_after_s) from None
        raise failed(target, f"{type(cause).__name__}: {cause}") from error
    finally:
        waiting.end(time.monotonic(), is_answered=is_answered)
