"""OpenAI's routes at the ingress (what their bodies may be is tested with the protocol)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eagleray.serving.transport import ReplicaFailed
from support.serving import Pretend, target, with_model


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_completion(ingress: Pretend) -> None:
    answer = ingress.post("/v1/completions", {"model": "gpt", "prompt": "def ", "max_tokens": 6, "seed": 3})
    values = answer.json()
    assert answer.status_code == 200
    assert (values["object"], values["model"]) == ("text_completion", "gpt")
    assert values["choices"][0]["text"] == "def de"
    assert values["choices"][0]["finish_reason"] == "length"
    assert values["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    [request] = ingress.transport.requests
    assert (request.prompt, request.seed) == ("def ", 3)
    assert ingress.transport.num_open == 0


def test_a_turn_of_a_conversation(ingress: Pretend) -> None:
    body = {"model": "gpt/versions/1", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    values = ingress.post("/v1/chat/completions", body).json()
    assert values["choices"][0]["message"] == {"role": "assistant", "content": "use", "refusal": None}
    [request] = ingress.transport.requests
    assert request.prompt == "user: hi\nassistant: "


def test_a_stream(ingress: Pretend) -> None:
    options = {"include_usage": True}
    body = {"model": "gpt", "prompt": "ab", "max_tokens": 3, "stream": True, "stream_options": options}
    answer = ingress.post("/v1/completions", body)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    found = events(answer.text)
    assert [event["choices"][0]["text"] for event in found[:3]] == ["a", "b", "a"]
    assert [event["choices"][0]["finish_reason"] for event in found[:3]] == [None, None, "length"]
    assert found[3]["usage"]["completion_tokens"] == 3
    assert found[4:] == ["[DONE]"]


def test_an_error_in_the_middle_of_a_stream_is_an_event(ingress: Pretend) -> None:
    ingress.transport.error, ingress.transport.breaks_after = ReplicaFailed("the replica went away"), 2
    answer = ingress.post("/v1/completions", {"model": "gpt", "prompt": "ab", "stream": True})
    assert answer.status_code == 200
    *pieces, last = events(answer.text)
    assert [event["choices"][0]["text"] for event in pieces] == ["a", "b"]
    assert last["error"]["message"].endswith("the replica went away")
    assert ingress.transport.num_open == 0


def test_an_error_before_the_first_piece_is_a_status(ingress: Pretend) -> None:
    ingress.transport.error = ReplicaFailed("the replica went away")
    answer = ingress.post("/v1/completions", {"model": "gpt", "prompt": "ab", "stream": True})
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "server_error")
    assert ingress.transport.num_open == 0


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        ({"model": "gpt", "prompt": "a", "max_tokens": 0}, "max_tokens is 0", "max_tokens"),
        ({"model": "gpt", "prompt": "a", "temperatur": 0}, "is no field of this route", "temperatur"),
        ({"model": "digits", "prompt": "a"}, "model 'digits' version 2 does not generate text", None),
        ({"prompt": "a"}, "give the name of a deployed model", "model"),
    ],
)
def test_a_request_that_will_not_do(ingress: Pretend, body: Any, message: str, field: str | None) -> None:
    answer = ingress.post("/v1/completions", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", field)
    assert message in error["message"]


def test_the_models_that_generate(ingress: Pretend) -> None:
    listed = ingress.get("/v1/models").json()
    entry = {"id": "gpt", "object": "model", "created": 1000, "owned_by": "eagleray"}
    assert listed == {"object": "list", "data": [entry]}
    for name in ("gpt", "gpt/versions/1"):
        assert ingress.get(f"/v1/models/{name}").json() == {**entry, "id": name}
    for name in ("digits", "nothing", "gpt/versions/7"):
        assert ingress.get(f"/v1/models/{name}").status_code == 404


def test_requests_are_counted_by_model(ingress: Pretend) -> None:
    ingress.set(routes=with_model(ingress.app.state.routes, "gpt", None))
    assert ingress.post("/v1/completions", {"model": "gpt", "prompt": "a"}).status_code == 404
    from eagleray.serving.routes import ModelRoute

    ingress.set(routes=with_model(ingress.app.state.routes, "gpt", ModelRoute(4, {}, {4: target("gpt", 4)})))
    ingress.post("/v1/completions", {"model": "gpt", "prompt": "a", "stream": True, "max_tokens": 2})
    text = ingress.get("/metrics").text
    assert '{route="/v1/completions",model="",version="",code="404"} 1' in text
    assert '{route="/v1/completions",model="gpt",version="4",code="200"} 1' in text
