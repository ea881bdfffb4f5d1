"""Open Inference v2's own form of text generation: requests, answers, events.

Taken: the fields of the contract, and `seed` beside its parameters. `details` is refused unless it is false:
it asks for log probabilities, which replicas do not tell.

Source: generate_rest.yaml of github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from eagleray.protocol import infer
from eagleray.protocol.events import event, quoted
from eagleray.protocol.generation import FieldError, GenerationChunk, GenerationRequest

_FIELDS = ("text_input", "parameters")
_PARAMETERS = ("max_tokens", "temperature", "top_p", "stop", "seed", "details")
_MAX_TOKENS = 20
_TEMPERATURE = 1.0


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
    if parameters.get("details", False) is not False:
        raise FieldError(
            "details are not told here: replicas give no log probabilities; leave it out", "details"
        )
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
    )


def whole(model: str, version: str, chunks: Iterable[GenerationChunk]) -> dict[str, Any]:
    """All chunks as one answer."""
    text = "".join(chunk.text for chunk in chunks)
    return {"text_output": text, "model_name": model, "model_version": version}


class GenerateEvents:
    """A `TextEvents`: an event per piece, and nothing else."""

    __slots__ = ("_after",)

    def __init__(self, model: str, version: str) -> None:
        named = json.dumps({"model_name": model, "model_version": version}, separators=(",", ":"))
        self._after = f",{named[1:]}\n\n"

    def piece(self, text: str, prompt_tokens: int, completion_tokens: int) -> str:
        """As TextEvents."""
        return f'data: {{"text_output":{quoted(text)}{self._after}'

    def last(self, chunk: GenerationChunk) -> str:
        """As TextEvents."""
        return self.piece(chunk.text, chunk.prompt_tokens, chunk.completion_tokens)

    def error(self, status: int, message: str) -> str:
        """As TextEvents."""
        return event({"error": message})


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
