"""One suite of requests, good ones and bad ones: whichever way they take, the answer is the same."""

from __future__ import annotations

import gzip
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from eagleray.errors import InputError
from eagleray.protocol import binary
from eagleray.protocol.infer import InferRequest, write_request
from support.ways import MAX_ONGOING, MAX_QUEUED, WAYS, Ways, all_ways

DIGITS, REVIEWS, GPT = (f"/v2/models/{name}/infer" for name in ("digits", "reviews", "gpt"))
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
LIMIT = 4 << 20
CHANGING = re.compile(rb'"(?:id|created)":(?:"(?:cmpl|chatcmpl)-[^"]*"|\d+),?|under request [0-9a-f]+')


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """One for this module."""
    with all_ways(tmp_path_factory.mktemp("w"), max_body_bytes=LIMIT, timeout_s=5.0) as found:
        yield found


@pytest.fixture(scope="module")
def clients(ways: Ways) -> Iterator[dict[str, httpx.Client]]:
    """To each gateway."""
    found = {way: httpx.Client(base_url=url, trust_env=False, timeout=30) for way, url in ways.urls.items()}
    yield found
    for client in found.values():
        client.close()


def plain(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """What must not differ."""
    names = ("content-type", binary.HEADER.lower(), "content-encoding", "retry-after", "allow", "vary")
    headers = {name: answer.headers[name] for name in names if name in answer.headers}
    assert answer.headers["x-request-id"]
    return answer.status_code, headers, CHANGING.sub(b"", answer.content)


def images(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 17, (size, 1, 8, 8)).astype(np.float32)


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(images(1)[0, 0].astype(np.uint8) * 15).save(out, "PNG")
    return out.getvalue()


def of(inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A request in JSON."""
    return {"content": write_request(InferRequest(inputs, **changes))}


def raw(inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One with raw bytes."""
    written = binary.write_request(InferRequest(inputs, **changes))
    return {"content": written.body, "headers": {binary.HEADER: str(written.json_bytes)}}


def wrong(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [1] * 64, **changes}
    return {"json": {"inputs": [tensor]}}


def late(asked: dict[str, Any]) -> dict[str, Any]:
    """The body comes in two pieces, so that the lane reads it into a slot."""
    content = asked["content"]

    def parts() -> Iterator[bytes]:
        yield content[:100]
        time.sleep(0.01)
        yield content[100:]

    return {"content": parts, "headers": {**asked["headers"], "content-length": str(len(content))}}


ALL = {"binary_data_output": True}
TEXTS = np.array(["schön", "odd", ""], object)
TOKENS = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]], np.int64)
PROMPT = {"model": "gpt", "prompt": "ab", "max_tokens": 6, "temperature": 0}
GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "JSON": (DIGITS, of({"image": images(1)})),
    "JSON of some": (DIGITS, of({"image": images(5)}, id="7", outputs=("class", "label"))),
    "JSON, nested": (DIGITS, {"json": {"inputs": [
        {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": images(1).tolist()}
    ]}}),
    "a version": ("/v2/models/digits/versions/1/infer", of({"image": images(1)})),
    "raw bytes": (DIGITS, raw({"image": images(3)})),
    "raw bytes both ways": (DIGITS, raw({"image": images(3)}, parameters=ALL)),
    "in the ring": (DIGITS, raw({"image": images(600)}, parameters=ALL)),
    "in the ring, read there": (DIGITS, late(raw({"image": images(600)}, parameters=ALL))),
    "too many for a slot": (DIGITS, raw({"image": images(12_000)}, outputs=("class",))),
    "an answer in the ring": (DIGITS, raw({"image": images(4000)}, parameters=ALL)),
    "much JSON": (DIGITS, of({"image": images(1500)})),
    "packed": (DIGITS, {
        "content": gzip.compress(of({"image": images(40)})["content"]),
        "headers": {"content-encoding": "gzip", "accept-encoding": "gzip"},
    }),
    "texts": (REVIEWS, of({"text": TEXTS})),
    "texts as raw bytes": (REVIEWS, raw({"text": TEXTS}, parameters=ALL)),
    "tokens": (GPT, of({"tokens": TOKENS})),
    "a picture": ("/models/digits:predict", {"content": picture(), "headers": {"content-type": "image/png"}}),
    "a text to judge": (
        "/models/reviews:predict", {"content": b"fine", "headers": {"content-type": "text/plain"}}
    ),
    "a text to go on with": ("/models/gpt:predict", {"json": {"inputs": "ab", "parameters": {
        "max_tokens": 4, "temperature": 0
    }}}),
    "a completion": (COMPLETE, {"json": PROMPT}),
    "one that is drawn": (COMPLETE, {"json": {**PROMPT, "temperature": 1, "seed": 3, "stop": ["\n", "x"]}}),
    "a stream": (COMPLETE, {"json": {**PROMPT, "stream": True, "stream_options": {"include_usage": True}}}),
    "a conversation": (CHAT, {"json": {
        "model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0
    }}),
    "its metadata": ("/v2/models/digits", {"method": "GET"}),
}  # fmt: skip
BAD: dict[str, tuple[str, dict[str, Any], int]] = {
    "another name": (DIGITS, wrong(name="imago"), 400),
    "another shape": (DIGITS, wrong(shape=[1, 8, 8]), 400),
    "another number of values": (DIGITS, wrong(data=[1] * 63), 400),
    "2^63": (DIGITS, wrong(shape=[2**63]), 400),
    "another datatype": (DIGITS, wrong(datatype="FP64"), 400),
    "a datatype that is none": (DIGITS, wrong(datatype="float"), 400),
    "infinite": (DIGITS, {"content": of({"image": images(1)})["content"].replace(b",0.0,", b",1e400,")}, 400),
    "an output that there is not": (DIGITS, of({"image": images(1)}, outputs=("x",)), 400),
    "a size that does not fit": (
        DIGITS, {**raw({"image": images(1)}), "content": raw({"image": images(1)})["content"][:-1]}, 400
    ),
    "one in the ring": (DIGITS, late(raw({"image": images(300)[:, 0]})), 400),
    "no JSON": (DIGITS, {"content": b"{"}, 400),
    "nothing": (DIGITS, {"content": b""}, 400),
    "no such model": ("/v2/models/none/infer", of({"image": images(1)}), 404),
    "no such version": ("/v2/models/digits/versions/9/infer", of({"image": images(1)}), 404),
    "too much": (DIGITS, {"content": b" " * (LIMIT + 1)}, 413),
    "another method": (DIGITS, {"method": "GET"}, 405),
    "no such coding": (DIGITS, {"content": b"x", "headers": {"content-encoding": "br"}}, 415),
    "a token that there is not": (GPT, of({"tokens": TOKENS + 1000}), 400),
    "too many tokens": (GPT, of({"tokens": np.ones((1, 13), np.int64)}), 400),
    "no picture": ("/models/digits:predict", {**GOOD["a picture"][1], "content": b"x"}, 400),
    "no text model": (COMPLETE, {"json": {**PROMPT, "model": "digits"}}, 400),
    "no prompt": (COMPLETE, {"json": {**PROMPT, "prompt": ""}}, 400),
    "too much to make": (COMPLETE, {"json": {**PROMPT, "max_tokens": 10**9, "stream": True}}, 400),
    "no such model of text": (COMPLETE, {"json": {**PROMPT, "model": "x"}}, 404),
}  # fmt: skip


def ask(client: httpx.Client, path: str, asked: dict[str, Any]) -> httpx.Response:
    """One request."""
    made = {"method": "POST", **asked}
    if callable(made.get("content")):
        made["content"] = made["content"]()
    return client.request(url=path, **made)


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_the_answer_is_the_same_by_all_ways(ways: Ways, clients: dict[str, httpx.Client], name: str) -> None:
    path, asked, status = BAD[name] if name in BAD else (*GOOD[name], 200)
    found = {way: plain(ask(client, path, asked)) for way, client in clients.items()}
    first = found[WAYS[0]]
    assert first[0] == status, first
    for way in WAYS[1:]:
        assert found[way] == first, way
    nothing_is_lost(ways)


def nothing_is_lost(ways: Ways) -> None:
    """Until nothing is under way, and all slots are free."""
    deadline = time.monotonic() + 60
    while True:
        lines = [line for transport in ways.transports for line in transport._lines.values()]
        links = [link for line in lines for link in line.pool.links]
        left = {
            "in flight": sum(app.metrics.in_flight for app in ways.apps.values()),
            "streams": sum(link.in_flight for link in links),
            "slots": sum(len(link._slots) for link in links),
            "taken slots": sum(16 - link._ring.num_free for link in links if link._ring),
            "waiting": sum(
                line.gate.cost_under_way + line.gate.num_queued for line in lines if line.gate is not None
            ),
            "texts": ways.replicas["gpt"]._texts.num_under_way,  # type: ignore[union-attr]
        }
        if not any(left.values()):
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.002)


def by_all(clients: dict[str, httpx.Client], path: str, asked: dict[str, Any]) -> list[Any]:
    """One answer, which is the same by all ways."""
    found = {way: plain(ask(client, path, asked)) for way, client in clients.items()}
    for way in WAYS[1:]:
        assert found[way] == found[WAYS[0]], way
    return [*found[WAYS[0]]]


PREDICTION = (DIGITS, of({"image": images(1)}))


@pytest.mark.parametrize("path", ["v2", "people"])
def test_a_model_that_breaks(
    ways: Ways, clients: dict[str, httpx.Client], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def broken(_: Any) -> Any:
        raise ValueError("no such layer")

    asked = PREDICTION if path == "v2" else GOOD["a picture"]
    with monkeypatch.context() as patch:
        patch.setattr(ways.replicas["digits"]._batcher, "_run", broken)
        status, headers, body = by_all(clients, *asked)
    assert (status, "retry-after" in headers) == (502, False)
    assert json.loads(body)["error"] == "model 'digits' version 1 failed: ValueError: no such layer"
    nothing_is_lost(ways)
    assert by_all(clients, *asked)[0] == 200


def test_outputs_that_are_none(
    ways: Ways, clients: dict[str, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ways.replicas["digits"]._batcher._run

    def spoiled(inputs: Any) -> dict[str, Any]:
        outputs = compute(inputs)
        return {**outputs, "probabilities": outputs["probabilities"] * np.nan}

    with monkeypatch.context() as patch:
        patch.setattr(ways.replicas["digits"]._batcher, "_run", spoiled)
        status, _, body = by_all(clients, *PREDICTION)
    assert (status, b"output 'probabilities' has NaN" in body) == (500, True)
    nothing_is_lost(ways)
    assert by_all(clients, *PREDICTION)[0] == 200


@pytest.fixture
def stuck(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The model of digits computes when this is set."""
    batcher, go_on = ways.replicas["digits"]._batcher, threading.Event()
    compute = batcher._run

    def slow(inputs: Any) -> Any:
        assert go_on.wait(20)
        return compute(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(batcher, "_run", slow)
        patch.setattr(batcher, "_may_run_in_loop", False)
        yield go_on
        go_on.set()
        nothing_is_lost(ways)


def test_a_model_that_takes_too_long(
    ways: Ways, clients: dict[str, httpx.Client], stuck: threading.Event
) -> None:
    path, asked = PREDICTION
    hurried = {**asked, "headers": {"x-request-timeout-ms": "80"}}
    for client in clients.values():
        answer = ask(client, path, hurried)
        assert answer.status_code == 504
        assert re.fullmatch(
            r"model 'digits' version 1 did not answer within 0\.0\d+ s", answer.json()["error"]
        )
    stuck.set()
    nothing_is_lost(ways)
    assert by_all(clients, *PREDICTION)[0] == 200


def test_a_queue_that_is_full(ways: Ways, clients: dict[str, httpx.Client], stuck: threading.Event) -> None:
    number = MAX_ONGOING + MAX_QUEUED
    said = "model 'digits' version 1 has 4 requests waiting, which is all it takes; try again"
    for transport in ways.transports:
        for line in transport._lines.values():
            line.gate = line.target = None  # it has seen larger requests than a replica takes at a time
    for way, client in clients.items():
        stuck.clear()
        with ThreadPoolExecutor(number) as threads:
            held = [threads.submit(ask, client, *PREDICTION) for _ in range(number)]
            deadline = time.monotonic() + 60
            while ways.apps[way].metrics.in_flight < number:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(0.05)
            refused = ask(client, *PREDICTION)
            stuck.set()
            assert {answer.result().status_code for answer in held} == {200}, way
        assert (refused.status_code, refused.json()["error"].startswith(said)) == (503, True), refused.text
        assert int(refused.headers["retry-after"]) >= 1
        assert ask(client, *PREDICTION).status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("error", ["full", "closed", "input", "broken"])
def test_texts_that_cannot_be_made(
    ways: Ways,
    clients: dict[str, httpx.Client],
    monkeypatch: pytest.MonkeyPatch,
    error: str,
    is_streamed: bool,
) -> None:
    from eagleray.inference.waiting import QueueClosed, QueueFull

    def submit(*_: Any, **__: Any) -> Any:
        raise {
            "full": QueueFull("20 texts wait already"),
            "closed": QueueClosed("the engine has ended"),
            "input": InputError("a token that there is not"),
            "broken": ValueError("no such layer"),
        }[error]

    asked = {"json": {**PROMPT, "stream": is_streamed}}
    with monkeypatch.context() as patch:
        patch.setattr(ways.replicas["gpt"]._texts, "submit", submit)
        status, headers, body = by_all(clients, COMPLETE, asked)
    expected = {"full": 503, "closed": 503, "input": 400, "broken": 502}[error]
    assert status == expected, body
    assert ("retry-after" in headers) == (expected == 503)
    nothing_is_lost(ways)
    assert by_all(clients, COMPLETE, asked)[0] == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_engine_is_told_whose_text_it_is(
    ways: Ways, clients: dict[str, httpx.Client], monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    texts = ways.replicas["gpt"]._texts
    assert texts is not None
    prepare, told = texts.submit, []

    def submit(*arguments: Any, key: str = "") -> Any:
        told.append(key)
        return prepare(*arguments, key=key)

    headers = {"Authorization": f"Bearer {ways.key}"}
    with monkeypatch.context() as patch:
        patch.setattr(texts, "submit", submit)
        for client in clients.values():
            answer = ask(client, COMPLETE, {"json": {**PROMPT, "stream": is_streamed}, "headers": headers})
            assert answer.status_code == 200
    assert told == [ways.key.split("_")[1]] * len(clients)


def test_an_engine_that_breaks_in_the_middle(
    ways: Ways, clients: dict[str, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts that are begun end with an error, as an event."""
    texts = ways.replicas["gpt"]._texts
    assert texts is not None
    prepare = texts.submit

    def submit(request: Any, on_piece: Any, on_end: Any, **options: Any) -> Any:
        from eagleray.errors import EaglerayError

        def broken(piece: Any) -> None:
            on_piece(piece)
            on_end(EaglerayError("it broke"))

        return prepare(request, broken, lambda _: None, **options)

    asked = {"json": {**PROMPT, "stream": True}}
    with monkeypatch.context() as patch:
        patch.setattr(texts, "submit", submit)
        for way, client in clients.items():
            answer = ask(client, COMPLETE, asked)
            events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
            assert answer.status_code == 200
            assert len(events) == 2, way
            assert events[0]["choices"][0]["text"]
            said = events[1]["error"]["message"]
            assert said == "model 'gpt' version 1 failed: EaglerayError: it broke", way
    nothing_is_lost(ways)
    assert by_all(clients, COMPLETE, asked)[0] == 200
