"""Answers of the OpenAI API for text: whole, as server-sent events, and read back by the client."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eagleray.errors import ServiceError
from eagleray.protocol.events import event, quoted
from eagleray.protocol.generation import GenerationChunk, GenerationRequest, Token
from eagleray.protocol.openai import OpenAiRequest

DONE = "[DONE]"


@dataclass(frozen=True)
class Answer:
    """The frame of one answer: what all its objects have in common."""

    request: OpenAiRequest
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    """Becomes the id, after `cmpl-` or `chatcmpl-`."""
    created_s: int = field(default_factory=lambda: int(time.time()))
    """Unix time."""

    def whole(self, chunks: Iterable[GenerationChunk]) -> dict[str, Any]:
        """All chunks, at least one, as the object that a caller without `stream` gets."""
        pieces = list(chunks)
        text, last = "".join(piece.text for piece in pieces), pieces[-1]
        said: dict[str, Any] = {"text": text}
        if self.request.is_chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return self.frame([_choice(said, last.finish_reason)], is_event=False) | {"usage": usage(last)}

    def events(self) -> OpenAiEvents:
        """Writes it piece by piece; a `TextEvents`."""
        return OpenAiEvents(self)

    def frame(self, choices: list[dict[str, Any]], *, is_event: bool) -> dict[str, Any]:
        """An object of the answer, or of one of its events."""
        is_chat = self.request.is_chat
        chat_kind = "chat.completion.chunk" if is_event else "chat.completion"
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{self.key}",
            "object": chat_kind if is_chat else "text_completion",
            "created": self.created_s,
            "model": self.request.model,
            "choices": choices,
        }


class OpenAiEvents:
    """A `TextEvents`: an event per piece, the counts where they were asked for, the end."""

    __slots__ = ("_after", "_answer", "_before", "_counts", "_first", "_is_chat", "_unfinished")

    def __init__(self, answer: Answer) -> None:
        asked = answer.request
        self._answer = answer
        self._is_chat = asked.is_chat
        frame = json.dumps(answer.frame([], is_event=True), separators=(",", ":"))
        self._before = f'data: {frame[:-2]}{{"index":0,"{"delta" if asked.is_chat else "text"}":'
        self._after = ',"logprobs":null,"finish_reason":'
        self._counts = ""
        """What follows the choices; empty where counts are in it."""
        if not asked.is_usage_continuous:
            self._counts = ',"usage":null}\n\n' if asked.is_usage_wanted else "}\n\n"
        self._unfinished = f"{self._after}null}}]{self._counts}"
        self._first = asked.is_chat

    def piece(
        self, text: str, prompt_tokens: int, completion_tokens: int, tokens: tuple[Token, ...] = ()
    ) -> str:
        """As TextEvents."""
        if self._is_chat:
            return self._turn(text, None, prompt_tokens, completion_tokens)
        if self._counts:
            return self._before + quoted(text) + self._unfinished
        return self._said(quoted(text), None, prompt_tokens, completion_tokens)

    def last(self, chunk: GenerationChunk) -> str:
        """As TextEvents."""
        counts = chunk.prompt_tokens, chunk.completion_tokens
        if self._is_chat:
            said = self._turn(chunk.text, chunk.finish_reason, *counts)
        else:
            said = self._said(quoted(chunk.text), chunk.finish_reason, *counts)
        if self._answer.request.is_usage_wanted:
            said += event(self._answer.frame([], is_event=True) | {"usage": usage(chunk)})
        return f"{said}data: {DONE}\n\n"

    def error(self, status: int, message: str) -> str:
        """As TextEvents."""
        return error_event(status, message)

    def _turn(self, text: str, reason: str | None, prompt_tokens: int, completion_tokens: int) -> str:
        said = f'{{"content":{quoted(text)}}}' if text else "{}"
        found = self._said(said, reason, prompt_tokens, completion_tokens)
        if self._first:
            self._first = False
            role = '{"role":"assistant","content":""}'
            return self._said(role, None, prompt_tokens, completion_tokens) + found
        return found

    def _said(self, said: str, reason: str | None, prompt_tokens: int, completion_tokens: int) -> str:
        ended = "null" if reason is None else quoted(reason)
        counts = self._counts
        if not counts:
            total = prompt_tokens + completion_tokens
            counts = (
                f',"usage":{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},'
                f'"total_tokens":{total}}}}}\n\n'
            )
        return f"{self._before}{said}{self._after}{ended}}}]{counts}"


def usage(last: GenerationChunk) -> dict[str, int]:
    """The counts up to and with this chunk."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def model_object(name: str, created_s: float) -> dict[str, Any]:
    """A model, as /v1/models/{name} answers."""
    return {"id": name, "object": "model", "created": int(created_s), "owned_by": "eagleray"}


def model_list(models: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """The (name, Unix time of its publication) of each model, as /v1/models answers."""
    return {"object": "list", "data": [model_object(name, created_s) for name, created_s in models]}


_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def error_object(status: int, message: str, *, field: str | None = None) -> dict[str, Any]:
    """The body of an answer with this HTTP status; `field` is that of a FieldError."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": _CODES.get(status)}}


def error_event(status: int, message: str) -> str:
    """The error as an event, where the status of the answer is already sent; the stream ends after it."""
    return event(error_object(status, message))


def write_completion(model: str, generation: GenerationRequest, *, is_streamed: bool) -> bytes:
    """The JSON body with which our client asks /v1/completions; streamed, with counts in each event."""
    values: dict[str, Any] = {
        "model": model,
        "prompt": generation.prompt,
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "seed": generation.seed,
        "stop": list(generation.stop),
        "stream": is_streamed,
    }
    if is_streamed:
        values["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return json.dumps(values).encode()


def read_answer(values: Mapping[str, Any]) -> GenerationChunk:
    """The whole answer of /v1/completions, or one of its events, as a chunk.

    Raises: ServiceError if it is an error object, or not an answer.
    """
    try:
        if "error" in values:
            raise ServiceError(values["error"]["message"])
        choice, counts = values["choices"][0], values["usage"]
        return GenerationChunk(
            choice["text"], choice["finish_reason"], counts["prompt_tokens"], counts["completion_tokens"]
        )
    except (LookupError, TypeError) as error:
        raise ServiceError(f"the server's answer is not a completion with counts: {values}") from error


def read_event(line: str) -> GenerationChunk | None:
    """A line of the stream that `write_completion` asked for; None for one that carries no piece of text.

    Raises: ServiceError if the server reports an error, or sends something else.
    """
    name, _, data = line.partition(":")
    if name != "data" or data.strip() == DONE:
        return None
    try:
        values = json.loads(data)
    except ValueError as error:
        raise ServiceError(f"the server's event is not JSON: {data[:80]!r}") from error
    is_usage_only = isinstance(values, Mapping) and values.get("choices") == []
    return None if is_usage_only else read_answer(values)


def _choice(said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
