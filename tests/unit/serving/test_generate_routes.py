"""Open Inference v2's text generation against its published contract (tests/contracts/generate_rest.yaml)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from eagleray.protocol.events import written
from eagleray.protocol.generate import GenerateEvents
from eagleray.protocol.generation import GenerationChunk
from eagleray.serving.transport import Overloaded, ReplicaFailed
from support.serving import Pretend, bearer

CONTRACT = yaml.safe_load((Path(__file__).parents[2] / "contracts/generate_rest.yaml").read_text())
PATHS = ["/v2/models/gpt/generate", "/v2/models/gpt/versions/1/generate"]
STREAMS = [f"{path}_stream" for path in PATHS]


def holds(values: Any, schema: str) -> Any:
    """`values`, which are as the contract's component says."""
    components = {"components": CONTRACT["components"]}
    jsonschema.validate(values, {"$ref": f"#/components/schemas/{schema}", **components})
    return values


def asked(text: str = "ab", **parameters: Any) -> dict[str, Any]:
    return holds({"text_input": text, "parameters": parameters}, "GenerateRequest")


def events(body: str) -> list[Any]:
    assert body.endswith("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in body[:-2].split("\n\n")]


def test_every_path_and_status_of_the_contract_is_described(ingress: Pretend) -> None:
    ours = ingress.get("/openapi.json").json()["paths"]
    assert len(CONTRACT["paths"]) == 2
    for path, operations in CONTRACT["paths"].items():
        found = ours[path.replace("${MODEL_NAME}", "{model}").replace("${MODEL_VERSION}", "{version}")]
        theirs = operations["post"]["responses"]
        assert theirs.keys() <= found["post"]["responses"].keys()
        assert theirs["200"]["content"].keys() == found["post"]["responses"]["200"]["content"].keys()
        assert found["post"]["requestBody"]["content"].keys() == {"application/json"}


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_text(ingress: Pretend, path: str) -> None:
    answer = ingress.post(path, asked(max_tokens=5, temperature=0.5, top_p=0.9, stop=["z"], seed=3))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = holds(answer.json(), "GenerateResponse")
    assert found == {"text_output": "ababa", "model_name": "gpt", "model_version": "1"}
    [request] = ingress.transport.requests
    assert (request.temperature, request.top_p, request.stop, request.seed) == (0.5, 0.9, ("z",), 3)
    assert ingress.transport.num_open == 0


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream(ingress: Pretend, path: str) -> None:
    answer = ingress.post(path, asked("a\u2028€", max_tokens=4))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    found = [holds(event, "GenerateStreamResponse") for event in events(answer.text)]
    assert [event["text_output"] for event in found] == ["a", "\u2028", "€", "a"]
    assert {(event["model_name"], event["model_version"]) for event in found} == {("gpt", "1")}


@pytest.mark.parametrize("path", [PATHS[0], STREAMS[0], "/v1/completions", "/v1/chat/completions"])
def test_the_replica_is_told_whose_text_it_is(ingress: Pretend, path: str) -> None:
    """It makes the texts of several keys in turns: whole ones, too."""
    said = {"messages": [{"role": "user", "content": "ab"}]} if "chat" in path else {"prompt": "ab"}
    body = {"text_input": "ab"} if path.startswith("/v2") else {"model": "gpt", **said}
    assert ingress.post(path, body, headers=bearer(ingress.infer_key)).status_code == 200
    assert ingress.post(path, body).status_code == 200
    _, by_nobody = ingress.transport.keys
    assert ingress.transport.keys == [ingress.infer_key.split("_")[1], by_nobody]
    assert not by_nobody


def test_details(ingress: Pretend) -> None:
    parameters = {"max_tokens": 3, "details": True}
    tokens = [
        {"id": ord(text), "text": text, "logprob": -0.5 * made, "special": False}
        for made, text in enumerate("aba", 1)
    ]
    found = holds(ingress.post(PATHS[0], asked(**parameters)).json(), "GenerateResponse")
    assert found["details"] == {"finish_reason": "length", "logprobs": tokens}
    answer = ingress.post(STREAMS[0], asked(**parameters))
    *others, last = [holds(event, "GenerateStreamResponse") for event in events(answer.text)]
    assert [event["text_output"] for event in (*others, last)] == ["a", "b", "a"]
    assert not any("details" in event for event in others)
    assert last["details"] == {"finish_reason": "length", "logprobs": tokens, "token": tokens[-1]}


@pytest.mark.parametrize("body", [{"text_input": "ab"}, {"text_input": "ab", "parameters": {"stop": None}}])
def test_what_is_left_out_is_as_the_contract_says(ingress: Pretend, body: Any) -> None:
    parameters = CONTRACT["components"]["schemas"]["GenerateParameters"]["properties"]
    assert ingress.post(PATHS[0], body).status_code == 200
    [request] = ingress.transport.requests
    assert request.max_tokens == parameters["max_tokens"]["default"]
    assert request.temperature == parameters["temperature"]["default"]
    assert (request.top_p, request.stop, request.seed) == (1.0, (), None)


@pytest.mark.parametrize("path", [PATHS[0], STREAMS[0]])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON"),
        (b"[]", "the body is []; send a JSON object"),
        (b"{}", "text_input is missing; give a string of valid Unicode"),
        ({"text_input": ""}, "text_input is empty"),
        (b'{"text_input": "\\ud800"}', "give a string of valid Unicode"),
        (
            {"text_input": "a", "text": "b"},
            "'text' is no field of the body",
        ),
        ({"text_input": "a", "parameters": [1]}, "parameters is [1]; send a JSON object"),
        ({"text_input": "a", "parameters": {"max_token": 1}}, "'max_token' is no field of parameters"),
        ({"text_input": "a", "parameters": {"max_tokens": 0}}, "max_tokens is 0"),
        ({"text_input": "a", "parameters": {"temperature": -1}}, "temperature is -1"),
        ({"text_input": "a", "parameters": {"top_p": 1.5}}, "top_p is 1.5"),
        ({"text_input": "a", "parameters": {"stop": "b"}}, "stop is 'b'; give a list of strings"),
        ({"text_input": "a", "parameters": {"details": 1}}, "details is 1; give true or false"),
    ],
)
def test_what_will_not_do_is_422(ingress: Pretend, path: str, body: Any, said: str) -> None:
    given = {"content": body} if isinstance(body, bytes) else {"values": body}
    answer = ingress.post(path, **given)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert said in holds(answer.json(), "GenerateErrorResponse")["error"]
    assert not ingress.transport.requests


@pytest.mark.parametrize("path", [PATHS[0], STREAMS[0]])
@pytest.mark.parametrize(
    ("error", "status"), [(ReplicaFailed("it broke"), 424), (Overloaded("no room", 3), 429)]
)
def test_failures_before_the_first_piece(ingress: Pretend, path: str, error: Exception, status: int) -> None:
    ingress.transport.error = error
    answer = ingress.post(path, asked())
    assert answer.status_code == status, answer.text
    assert str(error) in holds(answer.json(), "GenerateErrorResponse")["error"]
    assert answer.headers.get("retry-after") == ("3" if status == 429 else None)


def test_failures_in_the_middle(ingress: Pretend) -> None:
    ingress.transport.error, ingress.transport.breaks_after = ReplicaFailed("it broke"), 2
    answer = ingress.post(PATHS[0], asked())
    assert answer.status_code == 500
    assert "gave only a part of its answer" in holds(answer.json(), "GenerateErrorResponse")["error"]
    answer = ingress.post(STREAMS[0], asked())
    assert answer.status_code == 200
    *pieces, last = events(answer.text)
    assert "".join(holds(piece, "GenerateStreamResponse")["text_output"] for piece in pieces) == "ab"
    assert holds(last, "GenerateErrorResponse")["error"].endswith("it broke")
    assert ingress.transport.num_open == 0


@pytest.mark.parametrize("path", [PATHS[0], STREAMS[0]])
def test_models_that_do_not_generate_and_those_that_are_not_there(ingress: Pretend, path: str) -> None:
    answer = ingress.post(path.replace("gpt", "iris"), asked())
    assert answer.status_code == 422
    assert answer.json()["error"].endswith("POST /v2/models/iris/infer is its route")
    for none in (path.replace("gpt", "none"), path.replace("gpt", "gpt/versions/9")):
        assert ingress.post(none, asked()).status_code == 404


def test_events_are_written_as_json_is() -> None:
    async def chunks():
        for text in ('"\\', "\u2028€\n", "\x00\U0001f600", ""):
            yield GenerationChunk(text, None if text else "stop", 2, 1)

    async def collected() -> list[bytes]:
        return [event async for event in written(GenerateEvents('g"pt', "1"), chunks())]

    for event in asyncio.run(collected()):
        assert event.isascii()
        assert event.count(b"\n") == 2
        values = json.loads(event[6:])
        assert event == b"data: " + json.dumps(values, separators=(",", ":")).encode() + b"\n\n"
        assert values["model_name"] == 'g"pt'
