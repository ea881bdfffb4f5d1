"""What a replica does with the calls that come over its links: checked, batched, answered with timings."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationChunk
from eagleray.protocol.tensors import Array
from eagleray.serving.link import generating, tensors
from eagleray.serving.link.calls import Call, GenerateCall, InferCall
from eagleray.serving.link.frames import Timings
from eagleray.serving.replica.batcher import Answer, Batcher, Cancelled, Expired, Request
from eagleray.serving.replica.texts import News, QueueClosed, QueueFull, Texts

CLOSED_RETRY_S = 0.5
"""A guess: by then gateways no longer choose the replica that ends."""
FULL_RETRY_S = 1.0
_MICRO = 1e6


class Checked(Protocol):
    """Of `inference.Predictor`."""

    def check(self, inputs: Mapping[str, Array]) -> int:
        """Samples. Raises: InputError where the model cannot take them."""
        ...


class ReplicaHandler:
    """A link's Handler over a model: its batcher, and its texts where it makes any.

    Args:
        predictor: Says which inputs the model takes.
        batcher: Owned by the link's loop, in which all methods are called.
        texts: None: the model makes no text.
        call_soon: Has the loop do something; may be called from any thread.
    """

    def __init__(
        self,
        predictor: Checked,
        batcher: Batcher,
        texts: Texts | None,
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._predictor, self._batcher, self._texts = predictor, batcher, texts
        self._call_soon = call_soon
        self._requests: dict[Call, Request] = {}
        self._handles: dict[Call, Any] = {}

    def infer(self, call: InferCall) -> None:
        """As Handler."""
        try:
            inputs = call.inputs()
            self._predictor.check(inputs)
        except InputError as error:
            call.refuse(str(error))
            return
        request = Request(
            inputs,
            functools.partial(self._answered, call),
            arrived_s=call.received_s,
            deadline_s=call.deadline_s,
        )
        self._requests[call] = request  # first: it may be answered at once
        try:
            self._batcher.submit(request)
        except BaseException:
            self._requests.pop(call, None)  # its session fails the call
            raise

    def generate(self, call: GenerateCall) -> None:
        """As Handler."""
        if self._texts is None:
            call.refuse("the model does not generate text")
            return
        try:
            request, key = generating.read_request(call.request)
            self._handles[call] = self._texts.submit(
                request,
                functools.partial(self._in_loop, self._piece, call),
                functools.partial(self._in_loop, self._ended, call),
                key=key,
            )
        except InputError as error:
            call.refuse(str(error))
        except QueueFull as error:
            call.overload(str(error), FULL_RETRY_S)
        except QueueClosed as error:
            call.overload(str(error), CLOSED_RETRY_S)

    def cancel(self, call: Call) -> None:
        """As Handler."""
        if (request := self._requests.get(call)) is not None:
            self._batcher.cancel(request)  # answers it, unless it is being computed
        elif (handle := self._handles.pop(call, None)) is not None:
            handle.cancel()
            call.expire("nobody waits for it any more")

    def flush(self) -> None:
        """As Handler."""
        self._batcher.flush()

    def _answered(self, call: InferCall, answer: Answer) -> None:
        del self._requests[call]
        if answer.outputs is None:
            _fail(call, answer.error)
            return
        start_s = time.perf_counter()
        try:
            parts = tensors.write(answer.outputs)
        except InputError as error:  # the outputs', not the caller's
            call.fail(f"{type(error).__name__}: {error}")
            return
        encode_s = time.perf_counter() - start_s
        took = answer.timings
        assert took is not None  # it was computed
        timings = Timings(
            int(took.queue_s * _MICRO),
            int(took.batch_s * _MICRO),
            int(took.infer_s * _MICRO),
            int(encode_s * _MICRO),
            took.batch_size,
        )
        call.answer(parts, timings)

    def _in_loop(self, take: Callable[[GenerateCall, Any], None], call: GenerateCall, news: News) -> None:
        self._call_soon(functools.partial(take, call, news))

    def _piece(self, call: GenerateCall, chunk: GenerationChunk) -> None:
        call.piece(generating.piece_bytes(chunk), chunk.completion_tokens)

    def _ended(self, call: GenerateCall, news: News) -> None:
        if self._handles.pop(call, None) is None:
            return  # it was cancelled meanwhile
        if isinstance(news, GenerationChunk):
            queue_s = time.monotonic() - call.received_s
            call.end(generating.end_bytes(news), Timings(infer_us=int(queue_s * _MICRO)))
        else:
            _fail(call, news)


def _fail(call: Call, error: Exception | None) -> None:
    """End a call that was not computed, in the words that gateways put behind the model's name."""
    if isinstance(error, Expired | Cancelled):
        call.expire(str(error))
    elif isinstance(error, QueueClosed):
        call.overload(str(error), CLOSED_RETRY_S)
    else:
        call.fail(f"{type(error).__name__}: {error}")
