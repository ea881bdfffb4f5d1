"""`Client` and `AsyncClient` against a real uvicorn in front of pretending models."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eagleray.client import (
    Admin,
    AsyncAdmin,
    AsyncClient,
    AsyncTextStream,
    BusyError,
    Claims,
    Client,
    Gateways,
    KeyTerms,
    NoAnswerError,
    TextStream,
    TookTooLongError,
    calls,
)
from eagleray.client.errors import refusal
from eagleray.errors import (
    AuthError,
    CapacityError,
    EaglerayError,
    InputError,
    ModelNotFound,
    ServiceError,
    SpecError,
)
from eagleray.serving.routes import ModelRoute
from eagleray.serving.transport import Overloaded, ReplicaFailed
from support.serving import Pretend, PretendTransport, pretend, serving, target, with_model

IMAGES = (np.arange(2 * 64, dtype=np.float32) % 17).reshape(2, 1, 8, 8)
LABELS = [str(int(image.sum()) % 10) for image in IMAGES]


@pytest.fixture(scope="module")
def server() -> Iterator[Pretend]:
    with serving(pretend()) as server:
        yield server


@pytest.fixture
def ingress(server: Pretend) -> Iterator[Pretend]:
    """The module's server, as it was when it started."""
    state, transport, admin = server.app.state, server.transport, server.admin
    yield server
    server.app.state = state
    transport.__init__()
    admin.error, admin.ring = None, state.keys
    admin.deployed.clear()


class Blocking:
    """An AsyncClient whose methods a test calls as a Client's: the same tests are for both."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.inner = AsyncClient(*arguments, **more)
        self.admin = _Blocked(self.inner.admin, self._loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(_Blocked(self.inner, self._loop), name)

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self.inner.aclose())
        self._loop.close()

    def pieces(self, stream: AsyncTextStream) -> list[str]:
        async def collect() -> list[str]:
            return [piece async for piece in stream]

        return self._loop.run_until_complete(collect())

    def leave(self, stream: AsyncTextStream) -> None:
        async def leave() -> None:
            async with stream:
                async for _ in stream:
                    break

        self._loop.run_until_complete(leave())


class _Blocked:
    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *arguments, **more: self._loop.run_until_complete(found(*arguments, **more))


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return Client if request.param == "Client" else Blocking


@pytest.fixture
def client(ingress: Pretend, connect: Callable[..., Any]) -> Iterator[Any]:
    with connect(ingress.url, ingress.admin_key) as client:
        yield client


def pieces(client: Any, stream: Any) -> list[str]:
    return client.pieces(stream) if isinstance(client, Blocking) else list(stream)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_both_clients_have_the_same_methods() -> None:
    for ours, theirs, more in (
        (Client, AsyncClient, {"jobs"}),
        (Admin, AsyncAdmin, set()),
        (TextStream, AsyncTextStream, set()),
    ):
        public = {name for name in dir(ours) if name[0] != "_"} - more
        assert public == {name.replace("aclose", "close") for name in dir(theirs) if name[0] != "_"}
        for name in public - {"close"}:
            mine, other = getattr(ours, name), getattr(theirs, name)
            if callable(mine):
                assert inspect.signature(mine).parameters.keys() == inspect.signature(other).parameters.keys()
                assert inspect.getdoc(mine), name


@pytest.mark.parametrize(
    ("model", "version"), [("digits", 2), ("digits@candidate", 3), ("digits/versions/3", 3)]
)
def test_a_batch_is_predicted(ingress: Pretend, client: Any, model: str, version: int) -> None:
    found = client.predict(model, IMAGES)
    assert (found.model, found.version, found.labels, len(found)) == ("digits", version, LABELS, 2)
    assert (found.probabilities.dtype, found.probabilities.shape) == (np.float32, (2, 10))
    assert found["class"].tolist() == [int(label) for label in LABELS]
    _, inputs = ingress.transport.asked[-1]
    assert np.array_equal(inputs["image"], IMAGES)
    with pytest.raises(InputError, match="label is for one sample, and this prediction has 2; use labels"):
        _ = found.label
    with pytest.raises(InputError, match="has no 'value'; it has: label, class, probabilities"):
        _ = found.values


@pytest.mark.parametrize(
    "inputs",
    [IMAGES[0], IMAGES[:1], IMAGES[0].astype(np.float64), IMAGES[0].astype(np.uint8), IMAGES[0].tolist(),
     {"image": IMAGES[0]}],
    ids=["one", "batch of one", "float64", "uint8", "list", "dict"],
)  # fmt: skip
def test_one_sample_in_any_form(client: Any, inputs: Any) -> None:
    assert client.predict("digits", inputs).label == LABELS[0]


def test_texts_and_numbers_and_wanted_outputs(client: Any) -> None:
    assert client.predict("reviews", ["four", "three"]).labels == ["bad", "good"]
    assert client.predict("reviews", "four").label == "bad"
    assert client.predict("tones", np.ones(800)).values.tolist() == [[800.0]]
    assert list(client.predict("digits", IMAGES, outputs=["class"]).outputs) == ["class"]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("digits", np.zeros((2, 9)), r"input 'image': shape \[2, 9\], expected \[-1, 1, 8, 8\]"),
        ("digits", {"imgae": IMAGES}, "input 'imgae' is not known; this model takes: 'image' FP32"),
        ("digits", ["a"], "input 'image' takes FP32, and the array has <U1; convert it"),
        ("digits", IMAGES * np.nan, "'image' has NaN or infinite values; only finite ones are carried"),
        ("digits", IMAGES.astype(np.float64) * 1e300, "has a value that FP32 cannot hold"),
        ("reviews", [3], "3 is no text"),
        ("iris", [[1, 2], [3]], "input 'features': numpy makes no array of it"),
        ("reviews", "\ud800", "a text holds half a surrogate pair"),
    ],
)
def test_inputs_that_do_not_fit(client: Any, model: str, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        client.predict(model, inputs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing", "no model 'nothing' is deployed; deployed: digits"),
        ("digits@prod", "has no alias 'prod'; it has: candidate"),
        ("digits/versions/9", "has no deployed version '9'; deployed: 2, 3"),
        ("a#b", "model 'a#b': not a name"),
        ("../../x", "model '../../x': not a name"),
        ("..", "model '..': not a name"),
        ("digits/versions/..", "model 'digits' has no deployed version '..'"),
        ("x" * 300, "not a name"),
    ],
)
def test_a_model_that_is_not_there(client: Any, model: str, message: str) -> None:
    with pytest.raises(ModelNotFound, match=message):
        client.predict(model, IMAGES)
    with pytest.raises(ModelNotFound, match="model "):
        client.generate(model, "a")
    assert client.predict("digits", IMAGES).labels == LABELS


def test_a_name_that_leads_to_another_model_by_now(ingress: Pretend, client: Any) -> None:
    """What a model takes is asked once, and again when it does not fit any more."""
    assert client.predict("digits", IMAGES[0]).label == LABELS[0]
    other = replace(target("digits", 4), card=target("iris").card)
    ingress.set(routes=with_model(ingress.app.state.routes, "digits", ModelRoute(4, {}, {4: other})))
    found = client.predict("digits", np.array([1, 2, 3, 4]))
    assert (found.version, found.label) == (4, "versicolor")


def test_a_text(ingress: Pretend, client: Any) -> None:
    found = client.generate("gpt", "def ", max_tokens=6, temperature=0, seed=3, stop="x")
    assert (str(found), found.finish_reason) == ("def de", "length")
    assert (found.prompt_tokens, found.completion_tokens) == (4, 6)
    [request] = ingress.transport.requests
    assert (request.temperature, request.seed, request.stop) == (0, 3, ("x",))
    with pytest.raises(InputError, match="max_tokens is 0"):
        client.generate("gpt", "a", max_tokens=0)
    with pytest.raises(InputError, match="model 'digits' version 2 does not generate text"):
        client.generate("digits", "a")


def test_a_text_piece_by_piece(ingress: Pretend, client: Any) -> None:
    stream = client.generate("gpt", "ab", max_tokens=5, stream=True)
    assert stream.finish_reason is None
    assert pieces(client, stream) == ["a", "b", "a", "b", "a"]
    assert (stream.text, stream.finish_reason) == ("ababa", "length")
    assert (stream.prompt_tokens, stream.completion_tokens) == (2, 5)
    assert pieces(client, stream) == []


def test_a_text_that_is_left_stops_the_model(ingress: Pretend, client: Any) -> None:
    ingress.transport.pause_s, ingress.transport.pauses_after = 300, 1
    stream = client.generate("gpt", "ab", max_tokens=999, stream=True)
    assert ingress.transport.num_open == 1
    if isinstance(client, Blocking):
        client.leave(stream)
    else:
        with stream:
            assert next(iter(stream)) == "a"
    until(lambda: ingress.transport.num_open == 0, "it goes on though nobody reads it")
    assert (stream.text, stream.finish_reason) == ("a", None)


def test_a_text_that_breaks_off(ingress: Pretend, client: Any) -> None:
    ingress.transport.error, ingress.transport.breaks_after = ReplicaFailed("the replica went away"), 2
    stream = client.generate("gpt", "ab", stream=True)
    with pytest.raises(ServiceError, match="the replica went away"):
        pieces(client, stream)
    assert stream.text == "ab"
    ingress.transport.error = ReplicaFailed("not even one piece")
    ingress.transport.breaks_after = 0
    with pytest.raises(ServiceError, match="not even one piece"):
        client.generate("gpt", "ab", stream=True)


def test_a_text_that_stands_still(ingress: Pretend, client: Any) -> None:
    ingress.transport.pause_s, ingress.transport.pauses_after = 30, 2
    stream = client.generate("gpt", "ab", stream=True, timeout_s=1.5)
    with pytest.raises(TookTooLongError, match="the text stood still after 2 tokens"):
        pieces(client, stream)


def test_what_is_deployed(client: Any) -> None:
    models = {model.name: model for model in client.models()}
    assert list(models) == ["digits", "gpt", "iris", "reviews", "tones"]
    digits = client.model("digits")
    assert digits == models["digits"]
    assert (digits.default, digits.aliases, digits.input_kind) == (2, {"candidate": 3}, "image")
    assert [(v.version, v.state) for v in digits.versions] == [(2, "ready"), (3, "ready")]
    assert digits.inputs[0].shape == (-1, 1, 8, 8)
    assert (models["gpt"].is_generative, digits.is_generative) == (True, False)
    with pytest.raises(ModelNotFound):
        client.model("nothing")


def test_readiness(ingress: Pretend, client: Any) -> None:
    assert client.is_ready()
    assert client.is_ready("digits")
    routes = ingress.app.state.routes
    failed = replace(target("iris"), state="failed")
    ingress.set(routes=with_model(routes, "iris", ModelRoute(1, {}, {1: failed})))
    assert not client.is_ready()
    assert not client.is_ready("iris")
    assert client.is_ready("digits")
    with pytest.raises(ModelNotFound):
        client.is_ready("nothing")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "this needs an API key: .*; put it in EAGLERAY_KEY, or give it as Client"),
        ("er_00000000_" + "0" * 64, "the API key is wrong or was revoked"),
        ("admin", "the API key 'admin' has the scope admin; this needs infer"),
    ],
)
def test_keys(
    ingress: Pretend, connect: Any, monkeypatch: pytest.MonkeyPatch, key: str | None, message: str
) -> None:
    monkeypatch.delenv("EAGLERAY_KEY", raising=False)
    ingress.set(is_key_needed_for_infer=True)
    with connect(ingress.url, ingress.admin_key if key == "admin" else key) as client:
        for ask in (
            lambda: client.predict("digits", IMAGES),
            lambda: client.generate("gpt", "a"),
            client.models,
        ):
            with pytest.raises(AuthError, match=message):
                ask()
    with connect(ingress.url, ingress.infer_key) as client:
        assert client.predict("digits", IMAGES).labels == LABELS
        with pytest.raises(AuthError, match="this needs admin"):
            client.admin.status()


def test_address_and_key_from_the_environment(
    ingress: Pretend, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGLERAY_URL", ingress.url + "/")
    monkeypatch.setenv("EAGLERAY_KEY", ingress.admin_key)
    with connect() as client:
        assert client.admin.status()["cluster"] == "pretend"
        assert client.url == ingress.url
        assert ingress.admin_key not in repr(client)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "/models", "http://[::1", "http://x:99999", "http://x:y"]
)
def test_an_address_that_is_none(connect: Any, url: str) -> None:
    with pytest.raises(InputError, match="expected http://HOST:PORT"):
        connect(url)


@pytest.mark.parametrize("key", ["er_a\nb", "er_ä", "two words", "er_\x00"])
def test_a_key_that_no_header_can_carry(connect: Any, key: str) -> None:
    with pytest.raises(InputError, match="the API key is none: expected er_… in one line") as refused:
        connect("http://127.0.0.1:1", key)
    assert key not in str(refused.value)


def test_nothing_answers(connect: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with (
            connect(url, max_attempts=2) as client,
            pytest.raises(NoAnswerError, match=f"no ingress answers at {url}"),
        ):
            client.predict("digits", IMAGES)


def test_a_server_that_comes_up_is_waited_for(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    wait_s, failed = calls.Call.wait_s, []
    with ExitStack() as stack:

        def come_up(call: Any, error: EaglerayError, *rest: Any) -> float | None:
            if len(failed) == 1:  # between the second attempt and the third
                stack.enter_context(serving(pretend(), port=port))
            failed.append(error)
            return wait_s(call, error, *rest)

        monkeypatch.setattr(calls.Call, "wait_s", come_up)
        with connect(f"http://127.0.0.1:{port}") as client:
            assert client.predict("digits", IMAGES).labels == LABELS
    assert [type(error) for error in failed] == [NoAnswerError, NoAnswerError]


class Reluctant(PretendTransport):
    """Refuses so many requests first."""

    def __init__(self, refusals: int, retry_after_s: float) -> None:
        super().__init__()
        self.left, self.retry_after_s, self.times = refusals, retry_after_s, []

    def _refuse(self) -> None:
        self.times.append(time.monotonic())
        self.left -= 1
        if self.left >= 0:
            raise Overloaded("100 requests wait already", self.retry_after_s)

    async def infer(self, *arguments: Any, **more: Any) -> Any:
        self._refuse()
        return await super().infer(*arguments, **more)

    async def generate(self, *arguments: Any, **more: Any) -> Any:
        self._refuse()
        async for chunk in super().generate(*arguments, **more):
            yield chunk


@pytest.mark.parametrize("what", ["predict", "generate", "stream"])
def test_a_retry_obeys_the_server(
    ingress: Pretend, client: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    transport, waits_s, wait_s = Reluctant(2, 0.15), [], calls.Call.wait_s

    def noted(*arguments: Any) -> float | None:
        waits_s.append(wait_s(*arguments))
        return waits_s[-1]

    monkeypatch.setattr(calls.Call, "wait_s", noted)
    monkeypatch.setattr(ingress.app, "_transport", transport)
    if what == "predict":
        assert client.predict("digits", IMAGES).labels == LABELS
    else:
        found = client.generate("gpt", "ab", max_tokens=2, stream=what == "stream")
        assert ("".join(pieces(client, found)) if what == "stream" else found.text) == "ab"
    assert all(0.15 <= found_s <= 0.15 * calls._SPREAD for found_s in waits_s), "by the finer header"
    assert len(waits_s) == 2
    assert np.diff(transport.times).min() >= 0.15


def test_a_wait_beyond_the_time_limit_is_not_begun(
    ingress: Pretend, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress.app, "_transport", Reluctant(99, 30))
    started_s = time.monotonic()
    with pytest.raises(BusyError, match="100 requests wait already") as caught:
        client.predict("digits", IMAGES, timeout_s=29)
    assert time.monotonic() - started_s < 20
    assert caught.value.retry_after_s == 30


def test_attempts_are_counted(ingress: Pretend, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Reluctant(99, 0.01)
    monkeypatch.setattr(ingress.app, "_transport", transport)
    with connect(ingress.url, max_attempts=3) as client, pytest.raises(BusyError):
        client.predict("digits", IMAGES)
    assert len(transport.times) == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReplicaFailed("the replica went away"), ServiceError),
        (EaglerayError("something of ours"), ServiceError),
        (InputError("token 900 is not in 0..257"), InputError),
        (CapacityError("no node has a GPU"), CapacityError),
    ],
    ids=["502", "500", "400", "409"],
)
def test_other_refusals_are_not_tried_again(
    ingress: Pretend, client: Any, error: EaglerayError, kind: type[EaglerayError]
) -> None:
    ingress.transport.error = error
    with pytest.raises(kind, match=str(error)):
        client.predict("digits", IMAGES)
    assert len(ingress.transport.asked) == 1


@pytest.mark.parametrize("state", ["failed", "stopping"])
def test_a_version_that_failed_is_not_asked_again(ingress: Pretend, client: Any, state: str) -> None:
    routes = ingress.app.state.routes
    failed = replace(target("iris"), state=state, message="no CUDA")
    ingress.set(routes=with_model(routes, "iris", ModelRoute(1, {}, {1: failed})))
    with pytest.raises(ServiceError, match=f"is {state}: no CUDA") as caught:
        client.predict_file("iris", b"{}", "application/json")
    assert not isinstance(caught.value, BusyError)
    assert calls.models().wait_s(caught.value, 0, 60) is None


@pytest.mark.parametrize(
    ("status", "headers", "body", "is_busy"),
    [
        (503, {}, b'{"error": "model \'iris\' version 1 is failed"}', False),
        (503, {}, b'{"error": {"message": "is failed"}}', False),
        (503, {"retry-after": "2"}, b'{"error": "is starting"}', True),
        (503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b'{"error": "later"}', True),
        (503, {}, b"Deployment(name='Ingress') is temporarily unavailable", True),
        (503, {}, b"<html>503 Service Unavailable</html>", True),
        (503, {}, b"[" * 100_000, True),
        (429, {}, b'{"error": "too many"}', True),
        (502, {"retry-after": "2"}, b"", False),
    ],
)
def test_what_is_busy(status: int, headers: dict[str, str], body: bytes, is_busy: bool) -> None:
    found = refusal(status, headers, body, "http://127.0.0.1:8000")
    assert isinstance(found, ServiceError)
    assert isinstance(found, BusyError) == is_busy


def test_an_empty_name_is_no_list_of_all(client: Any) -> None:
    for ask in (
        lambda: client.model(""),
        lambda: client.predict("", IMAGES),
        lambda: client.is_ready(""),
        lambda: client.predict("digits/versions/", IMAGES),
    ):
        with pytest.raises(InputError, match="a name is empty"):
            ask()


@pytest.mark.parametrize("media_type", ["", "a\r\nb", "image/png\n", "image/pñg", "\x00", "\ud800"])
def test_a_media_type_that_no_header_can_carry(client: Any, media_type: str) -> None:
    with pytest.raises(InputError, match="give one as image/png"):
        client.predict_file("digits", b"", media_type)


def test_no_time_limit(ingress: Pretend, client: Any) -> None:
    assert client.predict("digits", IMAGES[0], timeout_s=float("inf")).label == LABELS[0]


def test_a_time_limit(ingress: Pretend, client: Any) -> None:
    client.predict("digits", IMAGES)
    ingress.transport.pause_s = 1.0
    with pytest.raises(TookTooLongError, match=r"/v2/models/digits/infer: no answer within 0\.\d+ s"):
        client.predict("digits", IMAGES, timeout_s=0.15)


def broken_server(answers: list[bytes]) -> Any:
    """Closes a connection after each answer, and without one where there is none left."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as request:
                # Closed on what it has not read, a connection is reset, and the answer may be lost.
                head = "".join(iter(lambda: request.readline().decode().rstrip("\r\n").lower() + "\n", "\n"))
                found = re.search(r"^content-length: (\d+)$", head, re.MULTILINE)
                request.read(int(found[1]) if found else 0)
                if answers:
                    connection.sendall(answers.pop(0))

    threading.Thread(target=run, daemon=True).start()
    return listener


def test_a_connection_that_breaks(connect: Any) -> None:
    """Asked again where that does no harm, a text of which nothing has come too."""
    good = b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"models": []}'
    made = json.dumps(
        {
            "choices": [{"text": "b", "index": 0, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    ).encode()
    text = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(made), made)
    events = b"data: %b\n\ndata: [DONE]\n\n" % made
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + events
    broken = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    lost = b"HTTP/1.1 502 x\r\nretry-after: 1\r\nretry-after-ms: 10\r\ncontent-length: 0\r\n\r\n"
    half = b"HTTP/1.1 503 x\r\nretry-after: 1\r\ncontent-length: 100\r\n\r\nhalf of it"
    answers = [b"", b"", good, b"", lost, text, b"", half, lost, stream, broken, b"", good]
    with broken_server(answers) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with connect(url) as client:
            assert client.models() == []
            assert client.generate("gpt", "a").text == "b"
            assert pieces(client, client.generate("gpt", "a", stream=True)) == ["b"]
            with pytest.raises(ServiceError, match="broke off"):
                pieces(client, client.generate("gpt", "a", stream=True))
            with pytest.raises(NoAnswerError, match="no ingress answers at"):
                client.admin.undeploy("gpt")
            assert answers == [good], "what changes the cluster is not asked again"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "not our ingress's answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "not our ingress's answer"),
        (b"HTTP/1.1 500 x\r\ncontent-length: 5\r\n\r\nhello", "hello"),
        (b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n", r"no reason given \(HTTP 500\)"),
        (b"HTTP/1.1 302 x\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", r"no reason given \(HTTP 302\)"),
    ],
)
def test_another_server(connect: Any, body: bytes, message: str) -> None:
    with broken_server([body]) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with connect(url) as client, pytest.raises((ServiceError, InputError), match=message):
            client.models()
        listener.shutdown(socket.SHUT_RDWR)


def test_the_control_plane(ingress: Pretend, client: Any) -> None:
    admin = client.admin
    assert admin.status()["cluster"] == "pretend"
    assert [model.name for model in admin.models()][:2] == ["digits", "iris"]
    versions = admin.versions("digits")
    assert [(v.version, v.aliases, v.metrics) for v in versions] == [
        (1, (), {"accuracy": 0.5}),
        (2, ("candidate",), {"accuracy": 0.5}),
    ]
    assert versions[0].lineage["run_id"] == "r1"
    admin.promote("digits", 2, "candidate")
    assert ingress.admin.promoted[-1] == ("digits", 2, "candidate")
    assert len(admin.services()) == 6
    assert [s.version for s in admin.services("digits")] == [2, 3]
    for ask in (lambda: admin.services("nothing"), lambda: admin.versions("nothing")):
        with pytest.raises(ModelNotFound, match="nothing"):
            ask()


def test_claims(ingress: Pretend, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = client.admin.claims()
    digits, run = found.claims
    assert (digits.wanted, digits.held, digits.wait.units, digits.wait.waited_s) == (1, {}, 1, 2.0)
    assert (run.held, run.notice.give, run.notice.left_s) == ({"aa": 1, "bb": 1}, {"bb": 1}, 7.4)
    assert [(node.name, node.total["CPU"]) for node in found.nodes] == [("node-a", 2.0), ("node-b", 2.0)]
    monkeypatch.setattr(ingress.admin, "held", {"trouble": "this cluster has no ledger"})
    assert client.admin.claims() == Claims("this cluster has no ledger")


def test_runs(ingress: Pretend, client: Any, connect: Any) -> None:
    found = client.runs(limit=2)
    assert [(run.status, run.metric, run.value) for run in found] == [
        ("running", None, None),
        ("finished", "test_accuracy", 0.5),
    ]
    assert client.runs(found[1].id) == [found[1]]
    assert len(client.runs("digits")) == 3
    assert client.runs("a&limit=x ü#") == []
    with pytest.raises(InputError, match="limit: expected"):
        client.runs(limit=0)
    with connect(ingress.url, ingress.infer_key) as other, pytest.raises(AuthError, match="needs admin"):
        other.runs()


def test_deploying(ingress: Pretend, client: Any, tmp_path: Any) -> None:
    assert client.admin.undeploy("iris") == [1]
    (tmp_path / "iris.toml").write_text('kind = "service"\nname = "iris"\nmax_replicas = 2\n')
    found = client.admin.deploy(tmp_path / "iris.toml", wait_s=5, overrides=["max_replicas=3"])
    assert (found.name, found.version, found.state) == ("iris", 1, "ready")
    assert ingress.admin.deployed[-1]["max_replicas"] == 3
    client.admin.deploy({"name": "iris"})
    assert ingress.admin.deployed[-1] == {"kind": "service", "name": "iris"}
    (tmp_path / "bad.toml").write_text('kind = "service"\nname = "iris"\nmax_replica = 2\n')
    with pytest.raises(SpecError, match="unknown key 'max_replica'"):
        client.admin.deploy(tmp_path / "bad.toml")
    with pytest.raises(ModelNotFound, match="no model 'nothing'"):
        client.admin.deploy({"name": "nothing"})
    ingress.admin.error = CapacityError("no node has a GPU")
    with pytest.raises(CapacityError, match="no node has a GPU"):
        client.admin.deploy({"name": "iris"})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("failed", "model 'iris' version 1 failed to start: no CUDA"),
        ("starting", "model 'iris' version 1 is still starting after 0.3 s"),
    ],
)
def test_a_deployment_that_does_not_come_up(
    ingress: Pretend, client: Any, monkeypatch: pytest.MonkeyPatch, state: str, message: str
) -> None:
    found = {"name": "iris", "version": 1, "state": state, "replicas": 0, "message": "no CUDA", "spec": {}}

    async def services() -> Any:
        return [found]

    monkeypatch.setattr(ingress.admin, "services", services)
    with pytest.raises(ServiceError, match=message):
        client.admin.deploy({"name": "iris"}, wait_s=0.3)
    assert client.admin.deploy({"name": "iris"}).state == state


def test_keys_are_made_and_revoked(ingress: Pretend, client: Any, connect: Any) -> None:
    made = client.admin.create_key("app", terms=KeyTerms(models=("digits",), requests_per_s=1e3))
    assert (made.name, made.scopes) == ("app", ("infer",))
    assert made.key.startswith(f"er_{made.id}_")
    assert made.key not in repr(made)
    listed = client.admin.keys()
    assert [(key.name, key.key) for key in listed][-1] == ("app", None)
    assert listed[-1].terms == made.terms == KeyTerms(models=("digits",), requests_per_s=1e3)
    first, made = made, client.admin.rotate_key(made.id, overlap_s=60.0)
    assert (made.id, made.key != first.key, made.old_text_until is not None) == (first.id, True, True)
    ingress.set(is_key_needed_for_infer=True)
    with connect(ingress.url, made.key) as other:
        assert other.predict("digits", IMAGES).labels == LABELS
        client.admin.revoke_key(made.id)
        with pytest.raises(AuthError, match="revoked"):
            other.predict("digits", IMAGES)
    with pytest.raises(InputError, match="no key has the id"):
        client.admin.revoke_key(made.id)


def test_gateways_are_replaced_and_counted(client: Any) -> None:
    before = client.admin.gateways()
    assert (before.number, before.running, before.is_settled) == (before.number, before.number, True)
    restarts = before.restarts + 1
    assert client.admin.restart_gateways() == Gateways(before.number, before.number, False, restarts)
    number = before.number + 1
    assert client.admin.scale_gateways(number) == Gateways(number, number, False, restarts)


def test_threads_share_a_client(ingress: Pretend) -> None:
    ingress.transport.pause_s = 0.05
    found: list[list[str]] = []
    with Client(ingress.url) as client:
        threads = [
            threading.Thread(target=lambda: found.append(client.predict("digits", IMAGES).labels))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [LABELS] * 20


def test_in_a_notebook(ingress: Pretend) -> None:
    """A notebook's cells run inside an event loop: the blocking client works there as anywhere."""

    async def cell() -> list[str]:
        with Client(ingress.url) as client:
            found = await asyncio.to_thread(client.predict, "digits", IMAGES)
            return found.labels

    async def blocking_cell(url: str) -> str:
        with Client(url) as client:
            return client.predict("digits", IMAGES[0]).label

    assert asyncio.run(cell()) == LABELS
    assert asyncio.run(blocking_cell(ingress.url)) == LABELS[0]
