"""What comes over a link, as callers of a Transport know it: outputs, the last piece of a text, errors."""

from __future__ import annotations

import numpy as np

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationChunk
from eagleray.serving import transport
from eagleray.serving.link import generating, tensors
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.frames import FrameError, Kind
from eagleray.serving.routes import Target
from eagleray.serving.transport import BadInput, Overloaded


def outputs_of(target: Target, answer: Answer) -> dict[str, np.ndarray]:
    """What a RESULT carries: views, good until its release. Raises: as `Transport.infer`."""
    if answer.kind != Kind.RESULT:
        raise error_of(target, answer)
    assert answer.body is not None
    try:
        if answer.slot is None:
            outputs = tensors.read(answer.body)
        else:
            outputs = tensors.read_apart(answer.head, answer.body)
    except InputError as error:
        raise transport.failed(target, f"its replica's answer cannot be read: {error}") from None
    for tensor in target.card.outputs:
        if tensor.name not in outputs:
            raise transport.failed(target, f"its replica's answer has no output {tensor.name!r}")
    return outputs


def copied_outputs(target: Target, answer: Answer) -> transport.Outputs:
    """As `outputs_of`, good for ever."""
    found = outputs_of(target, answer)
    if answer.slot is not None:
        found = {name: array.copy() for name, array in found.items()}
    return transport.Outputs(found, answer.timings)


def last_chunk(target: Target, answer: Answer) -> GenerationChunk:
    """The end of a text. Raises: as `Transport.generate`."""
    if answer.kind != Kind.RESULT:
        raise error_of(target, answer)
    assert answer.body is not None
    try:
        return generating.read_end(answer.body)
    except FrameError as error:
        raise transport.failed(target, f"its replica's answer cannot be read: {error}") from None


def error_of(target: Target, answer: Answer) -> Exception:
    """What an answer that is no RESULT is to its caller."""
    match answer.kind:
        case Kind.REFUSED:
            return BadInput(answer.message)
        case Kind.OVERLOADED:
            return Overloaded(f"{transport.what(target)}: {answer.message}", answer.retry_after_s)
        case Kind.EXPIRED:
            return TimeoutError(answer.message)
        case Kind.FAILED:
            return transport.failed(target, answer.message)
        case _:
            return transport.went_away(target, answer.message)
