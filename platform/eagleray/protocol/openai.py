"""Requests of the OpenAI API for text, from JSON bodies; `openai_answers.py` writes the answers.

Taken: what `GenerationRequest` has, under OpenAI's names, and `stream`, `stream_options`. Defaults are
OpenAI's, but `max_tokens` is 128 on both routes. What would change the answer and is not there (`n`,
`logprobs`, `tools`, …) is refused unless it asks for nothing; what describes the caller (`user`, `metadata`,
…) is ignored; a field that OpenAI does not have is refused too, so that a typing error shows.

Source: platform.openai.com/docs/api-reference, completions and chat (read 2026-11).
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.protocol import infer
from eagleray.protocol.generation import FieldError, GenerationRequest


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """system, developer, user or assistant."""
    content: str


@dataclass(frozen=True)
class OpenAiRequest:
    """What a client asks of /v1/completions or /v1/chat/completions."""

    model: str
    """As the caller wrote it; the ingress resolves it."""
    generation: GenerationRequest
    is_chat: bool
    is_streamed: bool = False
    is_usage_wanted: bool = False
    """`stream_options.include_usage`: counts in one more event at the end."""
    is_usage_continuous: bool = False
    """`stream_options.continuous_usage_stats` (vLLM's extension): counts in every event."""


def plain_template(messages: Sequence[ChatMessage]) -> tuple[str, tuple[str, ...]]:
    """The prompt of a conversation for a model without a template of its own, and where its turn ends.

    One line per message, `role: content`, then `assistant: `, which the model completes. Its turn ends where
    it begins a line of the user's.
    """
    lines = [f"{message.role}: {message.content}\n" for message in messages]
    return "".join(lines) + "assistant: ", ("\nuser:",)


def read_completion(body: bytes) -> OpenAiRequest:
    """The request in the JSON body of a POST to /v1/completions. Raises: FieldError, InputError."""
    values = _values(body, _COMPLETION)
    return _request(values, _prompt(values.get("prompt")), is_chat=False, max_tokens=values.get("max_tokens"))


def read_chat(
    body: bytes, template: Callable[[Sequence[ChatMessage]], tuple[str, tuple[str, ...]]] = plain_template
) -> OpenAiRequest:
    """The request in the JSON body of a POST to /v1/chat/completions. Raises: FieldError, InputError.

    `template` makes the prompt of the messages, and says which strings end the answer besides the caller's
    (all of them count for the bound of `GenerationRequest`).
    """
    values = _values(body, _CHAT)
    prompt, stop = template(_messages(values.get("messages")))
    older, newer = values.get("max_tokens"), values.get("max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise FieldError("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    max_tokens = older if newer is None else newer
    return _request(values, prompt, is_chat=True, max_tokens=max_tokens, stop=stop)


_COMMON = {"model", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "max_tokens"}
_IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # logprobs: for completions a number, for chat a bool; 0 asks for something, False for nothing
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Not supported: allowed only as null or with one of these values, which ask for nothing."""

_COMPLETION = _COMMON | {"prompt"}
_CHAT = _COMMON | {"messages", "max_completion_tokens"}


def _values(body: bytes, known: set[str]) -> Mapping[str, Any]:
    """The fields of the body; those that are not supported ask for nothing."""
    values = infer.loads(body)
    if not isinstance(values, Mapping):
        raise FieldError(f"the body is {_short(values)}; send a JSON object")
    for name, value in values.items():
        if name in known or name in _IGNORED or value is None:
            continue
        if name not in _NEUTRAL:
            takes = ", ".join(sorted(known))
            raise FieldError(
                f"{_short(name)} is no field of this route; it takes {takes}",
                name if name.isascii() else None,
            )
        if not any(_is_same(value, neutral) for neutral in _NEUTRAL[name]):
            raise FieldError(f"{name} is not supported here; leave it out", name)
    return values


def _request(
    values: Mapping[str, Any], prompt: str, *, is_chat: bool, max_tokens: Any, stop: tuple[str, ...] = ()
) -> OpenAiRequest:
    model = values.get("model")
    if not model or not infer.is_text(model):
        raise FieldError(f"model is {_short(model)}; give the name of a deployed model", "model")
    given = {name: values[name] for name in ("top_p", "seed") if values.get(name) is not None}
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    temperature = values.get("temperature")
    generation = GenerationRequest(
        prompt,
        temperature=1.0 if temperature is None else temperature,
        stop=_stop(values.get("stop")) + stop,
        **given,
    )
    is_streamed = _flag(values, "stream")
    options = values.get("stream_options")
    if options is None:
        return OpenAiRequest(model, generation, is_chat, is_streamed)
    if not isinstance(options, Mapping) or not is_streamed:
        raise FieldError("stream_options is an object, and only for stream = true", "stream_options")
    return OpenAiRequest(
        model,
        generation,
        is_chat,
        is_streamed,
        is_usage_wanted=_flag(options, "include_usage", "stream_options"),
        is_usage_continuous=_flag(options, "continuous_usage_stats", "stream_options"),
    )


def _prompt(prompt: Any) -> str:
    """A text, or the only one of a list."""
    if isinstance(prompt, Sequence) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise FieldError(f"prompt is {_short(prompt)}; give one string", "prompt")
    return prompt


def _messages(messages: Any) -> list[ChatMessage]:
    if not isinstance(messages, list) or not messages:
        raise FieldError(f"messages is {_short(messages)}; give a list of at least one", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise FieldError(f"{where} is {_short(message)}; give an object", "messages")
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise FieldError(
            f"{where}.role is {_short(role)}; give system, developer, user or assistant", "messages"
        )
    return ChatMessage(role, _content(message.get("content"), f"{where}.content"))


def _content(content: Any, where: str) -> str:
    """A text, or parts that are texts, one after the other."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(map(infer.is_text, texts)):
        raise FieldError(
            f"{where} is {_short(content)}; give a string of valid Unicode, or parts of type text", "messages"
        )
    return "".join(map(str, texts))


def _stop(stop: Any) -> tuple[str, ...]:
    """Null, one text or a list of them."""
    if stop is None:
        return ()
    if not isinstance(stop, str | list):
        raise FieldError(f"stop is {_short(stop)}; give a string or a list of strings", "stop")
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _flag(values: Mapping[str, Any], name: str, inside: str | None = None) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        where = name if inside is None else f"{inside}.{name}"
        raise FieldError(f"{where} is {_short(value)}; give true or false", inside or name)
    return bool(value)


def _is_same(value: Any, other: Any) -> bool:
    """Equal, where true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _short(value: Any) -> str:
    """The value, short enough for a message however long or deep it is."""
    return "missing" if value is None else reprlib.repr(value)
