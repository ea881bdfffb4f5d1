import asyncio
import json

import pytest

from eagleray.errors import ServiceError
from eagleray.protocol.events import written
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.protocol.openai import OpenAiRequest, read_completion
from eagleray.protocol.openai_answers import (
    Answer,
    error_event,
    error_object,
    model_list,
    read_answer,
    read_event,
    write_completion,
)

CHUNKS = [
    GenerationChunk("a", None, 4, 1),
    GenerationChunk("\u2028€\n", None, 4, 5),
    GenerationChunk("", "stop", 4, 7),
]
USAGE = {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}


def answer(*, is_chat=False, **changes):
    request = OpenAiRequest("gpt@new", GenerationRequest("def "), is_chat=is_chat, **changes)
    return Answer(request, key="1f", created_s=1234)


class Source:
    """The chunks, then an error if there is one; knows whether it was closed."""

    def __init__(self, error=None):
        self.error = error
        self.is_closed = False

    async def chunks(self):
        try:
            for chunk in CHUNKS:
                yield chunk
            if self.error:
                raise self.error
        finally:
            self.is_closed = True


async def collect(events):
    return [event async for event in events]


def events_of(answer):
    raw = b"".join(asyncio.run(collect(written(answer.events(), Source().chunks()))))
    *events, last, nothing = raw.split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    assert (last, nothing) == (b"data: [DONE]", b"")
    for event in events:  # written as by json, byte for byte
        assert event == b"data: " + json.dumps(json.loads(event[6:]), separators=(",", ":")).encode()
    return [json.loads(event[6:]) for event in events]


def test_a_completion_as_a_whole():
    assert answer().whole(CHUNKS) == {
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": 1234,
        "model": "gpt@new",
        "choices": [{"index": 0, "text": "a\u2028€\n", "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def test_a_chat_completion_as_a_whole():
    message = {"role": "assistant", "content": "a\u2028€\n", "refusal": None}
    assert answer(is_chat=True).whole(iter(CHUNKS)) == {
        "id": "chatcmpl-1f",
        "object": "chat.completion",
        "created": 1234,
        "model": "gpt@new",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def test_a_streamed_completion():
    events = events_of(answer())
    assert [event["choices"][0]["text"] for event in events] == ["a", "\u2028€\n", ""]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
    assert {(event["id"], event["object"], "usage" in event) for event in events} == {
        ("cmpl-1f", "text_completion", False)
    }


def test_a_streamed_chat():
    events = events_of(answer(is_chat=True))
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "\u2028€\n"},
        {},
    ]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


@pytest.mark.parametrize("is_chat", [False, True])
def test_counts_come_last_where_they_are_wanted(is_chat):
    *others, last = events_of(answer(is_chat=is_chat, is_usage_wanted=True))
    assert {event["usage"] for event in others} == {None}
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_counts_come_with_each_event_where_they_are_wanted():
    events = events_of(answer(is_usage_continuous=True))
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 5, 7]


def test_an_error_before_the_first_chunk_comes_before_the_first_event():
    async def chunks():
        raise ServiceError("full")
        yield CHUNKS[0]

    for is_chat in (False, True):
        with pytest.raises(ServiceError, match="full"):
            asyncio.run(anext(written(answer(is_chat=is_chat).events(), chunks())))


def test_the_source_is_closed_when_the_client_goes_away_or_it_breaks():
    async def go_away(source):
        events = written(answer().events(), source.chunks())
        await anext(events)
        await events.aclose()

    source = Source()
    asyncio.run(go_away(source))
    assert source.is_closed

    source = Source(ServiceError("gone"))
    with pytest.raises(ServiceError, match="gone"):
        asyncio.run(collect(written(answer().events(), source.chunks())))
    assert source.is_closed


def test_each_answer_has_an_id_of_its_own():
    request = OpenAiRequest("gpt", GenerationRequest("x"), is_chat=False)
    assert Answer(request).whole(CHUNKS)["id"] != Answer(request).whole(CHUNKS)["id"]


def test_models_and_errors_have_openai_s_shape():
    entry = {"id": "gpt", "object": "model", "created": 12, "owned_by": "eagleray"}
    assert model_list([("gpt", 12.7)]) == {"object": "list", "data": [entry]}
    assert error_object(400, "n is 2", field="n") == {
        "error": {"message": "n is 2", "type": "invalid_request_error", "param": "n", "code": None}
    }
    assert [error_object(status, "")["error"]["code"] for status in (401, 404, 429, 503)] == [
        "invalid_api_key",
        "model_not_found",
        "rate_limit_exceeded",
        None,
    ]
    assert error_object(503, "")["error"]["type"] == "server_error"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_our_client_writes_is_what_the_server_reads(is_streamed):
    generation = GenerationRequest("dé€f", 5, 0.3, 0.9, -4, ("\n", "€"))
    found = read_completion(write_completion("gpt", generation, is_streamed=is_streamed))
    assert (found.model, found.generation, found.is_streamed) == ("gpt", generation, is_streamed)
    assert found.is_usage_continuous == is_streamed


def test_our_client_reads_what_the_server_writes():
    streamed = answer(is_usage_wanted=True, is_usage_continuous=True)
    raw = asyncio.run(collect(written(streamed.events(), Source().chunks())))
    lines = b"".join(raw).decode().splitlines()
    assert [chunk for line in lines if (chunk := read_event(line))] == CHUNKS
    assert read_answer(answer().whole(CHUNKS)) == GenerationChunk("a\u2028€\n", "stop", 4, 7)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (error_event(502, "the replica broke").strip(), "the replica broke"),
        ('data: {"error": "plain words"}', "not a completion with counts: .*plain words"),
        ("data: <html>", "the server's event is not JSON"),
        ("data: 3", "is not a completion with counts"),
        ('data: {"choices": [{}]}', "is not a completion with counts"),
        ('data: {"choices": [{"text": "x", "finish_reason": null}], "usage": null}', "with counts"),
    ],
)
def test_an_event_that_is_an_error_or_no_answer(line, problem):
    with pytest.raises(ServiceError, match=problem):
        read_event(line)


def test_lines_without_text_are_passed_over():
    assert [read_event(line) for line in ("", ": ping", "event: x", "data: [DONE]", "data:[DONE]")] == [
        None
    ] * 5
