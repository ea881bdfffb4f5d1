"""Open Inference v2's own form of text generation: requests, answers, events.

Taken: the fields of the contract, and `seed` beside its parameters. The details of a stream come with its
last event, for only that has a reason to end, which the contract wants in all details; beside the last token
they have all of them, as those of a whole answer do.

Source: generate_rest.yaml of github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from eagleray.protocol import infer
from eagleray.protocol.events import event, quoted
from eagleray.protocol.generation import FieldError, FinishReason, GenerationChunk, GenerationRequest, Token

_FIELDS = ("text_input", "parameters")
_PARAMETERS = ("max_tokens", "temperature", "top_p", "stop", "seed", "details")
_MAX_TOKENS = 20
_TEMPERATURE = 1.0
_REASONS: Mapping[FinishReason, str] = {"stop": "stop_sequence", "length": "length"}


def read_request(body: bytes) -> GenerationRequest:
    """The request in the JSON body of a POST. Raises: FieldError, InputError."""
    values = _known(infer.loads(body), _FIELDS, "the body")
    text = values.get("text_input")
    if not isinstance(text, str) or not infer.is_text(text):
        raise FieldError(f"text_input is {_short(text)}; give a string of valid Unicode", "text_input")
    if not text:
        raise FieldError("text_input is empty; give at least one character to go on from", "text_input")
    asked = values.get("parameters")
    parameters = _known({} if asked is None else asked, _PARAMETERS, "parameters")
    with_tokens = parameters.get("details", False)
    if not isinstance(with_tokens, bool):
        raise FieldError(f"details is {_short(with_tokens)}; give true or false", "details")
    stop = parameters.get("stop", [])
    if not isinstance(stop, list):
        raise FieldError(f"stop is {_short(stop)}; give a list of strings", "stop")
    return GenerationRequest(
        text,
        parameters.get("max_tokens", _MAX_TOKENS),
        parameters.get("temperature", _TEMPERATURE),
        parameters.get("top_p", 1.0),
        parameters.get("seed"),
        tuple(stop),
        with_tokens,
    )


def whole(
    model: str, version: str, request: GenerationRequest, chunks: Sequence[GenerationChunk]
) -> dict[str, Any]:
    """All chunks as one answer."""
    text = "".join(chunk.text for chunk in chunks)
    answer: dict[str, Any] = {"text_output": text, "model_name": model, "model_version": version}
    if request.with_tokens:
        answer["details"] = _details(chunks[-1], [token for chunk in chunks for token in chunk.tokens])
    return answer


class GenerateEvents:
    """A `TextEvents`: an event per piece, and nothing else."""

    __slots__ = ("_after", "_named", "_tokens")

    def __init__(self, model: str, version: str) -> None:
        self._named = {"model_name": model, "model_version": version}
        named = json.dumps(self._named, separators=(",", ":"))
        self._after = f",{named[1:]}\n\n"
        self._tokens: list[Token] = []

    def piece(
        self, text: str, prompt_tokens: int, completion_tokens: int, tokens: tuple[Token, ...] = ()
    ) -> str:
        """As TextEvents."""
        self._tokens += tokens
        return f'data: {{"text_output":{quoted(text)}{self._after}'

    def last(self, chunk: GenerationChunk) -> str:
        """As TextEvents."""
        if not chunk.tokens:
            return self.piece(chunk.text, chunk.prompt_tokens, chunk.completion_tokens)
        details = _details(chunk, [*self._tokens, *chunk.tokens])
        details["token"] = details["logprobs"][-1]
        return event({"text_output": chunk.text, **self._named, "details": details})

    def error(self, status: int, message: str) -> str:
        """As TextEvents."""
        return event({"error": message})


def _details(last: GenerationChunk, tokens: Sequence[Token]) -> dict[str, Any]:
    logprobs = [
        {"id": token.number, "text": token.text, "logprob": token.log_probability, "special": False}
        for token in tokens  # special ones, which stand for no text, are never drawn
    ]
    return {"finish_reason": _REASONS[last.finish_reason or "length"], "logprobs": logprobs}


def _known(values: Any, known: tuple[str, ...], what: str) -> Mapping[str, Any]:
    """The fields that are there; null is as if it were not. Raises: FieldError where one is not known."""
    if not isinstance(values, dict):
        raise FieldError(f"{what} is {_short(values)}; send a JSON object")
    for name in values:
        if name not in known:
            raise FieldError(
                f"{_short(name)} is no field of {what}; there are {', '.join(known)}",
                name if name.isascii() else None,
            )
    return {name: value for name, value in values.items() if value is not None}


def _short(value: Any) -> str:
    """The value, short enough for a message however long or deep it is."""
    return "missing" if value is None else reprlib.repr(value)
