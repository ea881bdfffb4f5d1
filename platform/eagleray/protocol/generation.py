"""A request for text and the pieces of its answer, shared by the client, the ingress and the replicas."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from eagleray.errors import InputError

FinishReason = Literal["stop", "length"]

MAX_TOKENS = 32_768
"""Bound on `max_tokens` of one request, so that none holds a replica for hours."""

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
"""Characters of one stop string: as many may be held back from a stream."""


class FieldError(InputError):
    """A field of a request is not as it must be."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field
        """Its name, without an index; None if the request as a whole is wrong."""


@dataclass(frozen=True)
class GenerationRequest:
    """What to complete and how; a value outside its range raises FieldError.

    A prompt longer than the model's context is cut from the left by the model's side; all of it counts as
    `prompt_tokens`. An empty prompt is refused: the model needs a first token to go on from.
    """

    prompt: str
    max_tokens: int = 128
    """1 to `MAX_TOKENS`; may exceed the model's context, whose window then slides."""
    temperature: float = 0.7
    """0 (the likeliest token each time) to 2."""
    top_p: float = 1.0
    """0 to 1: draws among the likeliest tokens whose probabilities just reach this sum (at least one)."""
    seed: int | None = None
    """Any int64. Equal requests with a seed have equal answers on one machine; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these to be complete; none of them is in the answer."""
    with_tokens: bool = False
    """Whether chunks tell their tokens."""

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if not self.prompt:
            raise FieldError("prompt is empty; give at least one character to go on from", "prompt")
        _check_number("max_tokens", self.max_tokens, 1, MAX_TOKENS, is_whole=True)
        _check_number("temperature", self.temperature, 0, 2)
        _check_number("top_p", self.top_p, 0, 1)
        if self.seed is not None:
            _check_number("seed", self.seed, -(2**63), 2**63 - 1, is_whole=True)
        _check_stop(self.stop)


class Token(NamedTuple):
    """One token of an answer."""

    number: int
    """In the vocabulary."""
    text: str
    """What it stands for by itself; U+FFFD for a part of a character."""
    log_probability: float
    """Natural logarithm, of the model's own distribution: neither temperature nor top_p have a part in it."""


@dataclass(frozen=True)
class GenerationChunk:
    """A piece of the answer; the pieces' texts in order are the whole answer.

    Exactly one chunk, the last, has a `finish_reason`; its text may be empty. The counts are those up to and
    with this chunk, so the last one's are the request's usage.
    """

    text: str
    finish_reason: FinishReason | None
    """"stop": a stop string came; "length": `max_tokens` were made."""
    prompt_tokens: int
    """Tokens of the prompt as it was given."""
    completion_tokens: int
    """Tokens the model has made so far, those of text that is held back or cut off included."""
    tokens: tuple[Token, ...] = ()
    """Made since the chunk before, where the request asked for them."""


def _check_number(name: str, value: object, lowest: float, highest: float, *, is_whole: bool = False) -> None:
    allowed = int if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise FieldError(
            f"{name} is {reprlib.repr(value)}; give a {'whole ' if is_whole else ''}number", name
        )
    if not lowest <= value <= highest:  # NaN is refused too
        raise FieldError(f"{name} is {value}; give a number from {lowest} to {highest}", name)


def _check_stop(stop: object) -> None:
    if not isinstance(stop, tuple):
        raise FieldError(f"stop is {reprlib.repr(stop)}; give a tuple of strings", "stop")
    if len(stop) > MAX_STOP_STRINGS:
        raise FieldError(f"stop has {len(stop)} strings; give at most {MAX_STOP_STRINGS}", "stop")
    for position, text in enumerate(stop):
        _check_text(f"stop[{position}]", text)
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise FieldError(
                f"stop[{position}] has {len(text)} characters; give 1 to {MAX_STOP_LENGTH}", "stop"
            )


def _check_text(name: str, text: object) -> None:
    field = name.partition("[")[0]
    if not isinstance(text, str):
        raise FieldError(f"{name} is {type(text).__name__}; give a string", field)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FieldError(
            f"{name} has half a surrogate pair at character {error.start}; give valid Unicode", field
        ) from error
