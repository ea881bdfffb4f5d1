"""Answers of the OpenAI API for text: whole, as server-sent events, and read back by the client."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from eagleray.errors import ServiceError
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
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
        return self._frame([_choice(said, last.finish_reason)], is_event=False) | {"usage": usage(last)}

    async def events(self, chunks: AsyncGenerator[GenerationChunk]) -> AsyncGenerator[bytes]:
        """The body of a `text/event-stream`: an event per chunk, the counts if they were asked for, the end.

        Nothing is yielded before the first chunk is there, so an error before it can still be the status.
        Closed early, or when an error passes, `chunks` is closed; after an error send `error_event`.
        """
        last = None
        async with aclosing(chunks):
            async for chunk in chunks:
                if last is None and self.request.is_chat:
                    yield self._event({"delta": {"role": "assistant", "content": ""}}, None, chunk)
                yield self._event(self._said(chunk.text), chunk.finish_reason, chunk)
                last = chunk
        if self.request.is_usage_wanted and last is not None:
            yield event(self._frame([], is_event=True) | {"usage": usage(last)})
        yield f"data: {DONE}\n\n".encode()

    def _said(self, text: str) -> dict[str, Any]:
        if not self.request.is_chat:
            return {"text": text}
        return {"delta": {"content": text} if text else {}}

    def _event(self, said: dict[str, Any], finish_reason: str | None, chunk: GenerationChunk) -> bytes:
        values = self._frame([_choice(said, finish_reason)], is_event=True)
        if self.request.is_usage_continuous:
            values["usage"] = usage(chunk)
        elif self.request.is_usage_wanted:
            values["usage"] = None
        return event(values)

    def _frame(self, choices: list[dict[str, Any]], *, is_event: bool) -> dict[str, Any]:
        is_chat = self.request.is_chat
        chat_kind = "chat.completion.chunk" if is_event else "chat.completion"
        return {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{self.key}",
            "object": chat_kind if is_chat else "text_completion",
            "created": self.created_s,
            "model": self.request.model,
            "choices": choices,
        }


def usage(last: GenerationChunk) -> dict[str, int]:
    """The counts up to and with this chunk."""
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def event(values: Mapping[str, Any]) -> bytes:
    """One server-sent event; ASCII, since some clients cut lines at U+2028 too (httpx's iter_lines does)."""
    return f"data: {json.dumps(values, separators=(',', ':'))}\n\n".encode()


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


def error_event(status: int, message: str) -> bytes:
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
