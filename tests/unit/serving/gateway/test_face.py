"""What is no HTTP request as we take it, sent byte by byte to a gateway: status, answer, and all goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from eagleray.serving.gateway.face import Face
from eagleray.serving.gateway.rules import Rules
from eagleray.serving.gateway.settings import GatewaySettings
from support.serving import Pretend, pretend, serving

RULES = Rules(head_s=0.2, linger_s=0.2, linger_bytes=300_000, stalled_s=0.3, max_pipelined=4)
HEAD = b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: localhost\r\n"
GOOD = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["application", "lane"])
def ingress(request: pytest.FixtureRequest) -> Iterator[Pretend]:
    """One gateway for this module, whose patience is short; and one whose requests take the fast lane."""
    found = pretend(over_links=request.param)
    with serving(found, rules=RULES, settings=GatewaySettings(max_connections=30)):
        yield found
    if found.links is not None:
        found.links.close()


@contextlib.contextmanager
def connection(ingress: Pretend) -> Iterator[socket.socket]:
    assert ingress.gateway
    with socket.create_connection(("127.0.0.1", ingress.gateway.port), timeout=60) as found:
        yield found


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other end closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def one_of(connection: socket.socket) -> bytes:
    """The next answer, whole, while the connection goes on."""
    found = b""
    while not (length := re.search(rb"content-length: (\d+)\r\n(?:.*\r\n)*\r\n", found)):
        found += connection.recv(1) or pytest.fail(f"it ended after {found!r}")
    while len(found) < length.end() + int(length[1]):
        found += connection.recv(1) or pytest.fail(f"it ended after {found!r}")
    return found


def answers(received: bytes) -> list[tuple[int, Any]]:
    """Status and JSON of each."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        body, received = rest[:length], rest[length:]
        found.append((int(head.split()[1]), json.loads(body)))
    return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def num_refused(ingress: Pretend, code: int) -> int:
    lines = re.findall(
        rf'^eagleray_ingress_requests_total{{route="\(none\)",.*code="{code}"}} (.*)$',
        ingress.metrics.text(),
        re.M,
    )
    return sum(map(int, lines))


LONG = b"x: " + b"y" * 1000 + b"\r\n"
TE = HEAD + b"transfer-encoding: "
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
REFUSED: list[tuple[str, bytes, int, str]] = [
    ("two lengths", HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400, "Duplicate"),
    ("two equal lengths", HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400, "Duplicate"),
    ("a list of lengths", HEAD + b"content-length: 3, 3\r\n\r\nabc", 400, "Content-Length"),
    ("a length with a sign", HEAD + b"content-length: +3\r\n\r\nabc", 400, "Content-Length"),
    ("a negative length", HEAD + b"content-length: -3\r\n\r\nabc", 400, "Content-Length"),
    ("no length", HEAD + b"content-length: \r\n\r\n", 400, "Content-Length"),
    ("a length beyond 2^64", HEAD + b"content-length: 99999999999999999999\r\n\r\n", 400, "overflow"),
    ("both framings", HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400, "Length"),
    ("the other way round", TE + b"chunked\r\ncontent-length: 3\r\n\r\n", 400, "Length"),
    ("chunked twice", TE + b"chunked\r\ntransfer-encoding: chunked\r\n\r\n", 400, "Encoding"),
    ("gzip in chunks", TE + b"gzip, chunked\r\n\r\n0\r\n\r\n", 501, "only chunked is known"),
    ("almost chunked", TE + b"xchunked\r\n\r\n0\r\n\r\n", 501, "only chunked is known"),
    ("identity", TE + b"identity\r\n\r\n", 501, "only chunked is known"),
    ("a blank before the colon", HEAD + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n", 400, "header"),
    ("a tab before chunked", TE + b"\x0bchunked\r\n\r\n0\r\n\r\n", 400, "no HTTP/1.1 request"),
    ("no hexadecimal chunk", CHUNKED + b"zz\r\nab\r\n0\r\n\r\n", 400, "chunk size"),
    ("a negative chunk", CHUNKED + b"-1\r\n\r\n", 400, "chunk size"),
    ("a chunk with 0x", CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n", 400, "chunk size"),
    ("a chunk beyond 2^64", CHUNKED + b"fffffffffffffffff\r\n", 400, "overflow"),
    ("a chunk that is longer than it says", CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", 400, "no HTTP/1.1 request"),
    ("a chunk's line without CR", CHUNKED + b"2\nab\r\n0\r\n\r\n", 400, "chunk size"),
    ("lines without CR", b"GET /v2 HTTP/1.1\nhost: localhost\n\n", 400, "CRLF"),
    ("a header's line without CR", b"GET /v2 HTTP/1.1\r\nhost: localhost\nx: y\r\n\r\n", 400, "CR"),
    ("a CR inside", b"GET /v2 HTTP/1.1\r\nhost: local\rhost\r\n\r\n", 400, "LF"),
    ("a folded line", b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n x: y\r\n\r\n", 400, "whitespace"),
    ("a zero byte", b"GET /v2 HTTP/1.1\r\nhost: local\0host\r\n\r\n", 400, "header value"),
    ("no Host", b"GET /v2 HTTP/1.1\r\nx: y\r\n\r\n", 400, "no Host header"),
    ("two Hosts", b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nHost: evil\r\n\r\n", 400, "2 Host headers"),
    ("a Host with a path", b"GET /v2 HTTP/1.1\r\nhost: localhost/evil\r\n\r\n", 400, "names no host"),
    ("a Host with a user", b"GET /v2 HTTP/1.1\r\nhost: me@localhost\r\n\r\n", 400, "names no host"),
    ("another's address", b"GET http://evil/v2 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "not a path"),
    ("a tunnel", b"CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n\r\n", 501, "no proxy"),
    ("the server as a whole", b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "not a path"),
    ("HTTP/0.9", b"GET /v2\r\n\r\n", 505, "HTTP/1.1 is"),
    ("HTTP/2.0", b"GET /v2 HTTP/2.0\r\nhost: localhost\r\n\r\n", 505, "HTTP/1.1 is"),
    ("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "no HTTP/1.1 request"),
    ("a future version", b"GET /v2 HTTP/1.2\r\nhost: localhost\r\n\r\n", 400, "version"),
    ("chunks in HTTP/1.0", b"POST /v2 HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400, "HTTP/1.0"),
    ("an expectation", HEAD + b"expect: the unexpected\r\ncontent-length: 0\r\n\r\n", 417, "100-continue"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, 400, "no HTTP/1.1 request"),
    ("a path beyond ASCII", b"GET /\xc3\xa9 HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "no HTTP/1.1 request"),
    ("a long path", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 414, "8192 bytes"),
    ("many headers", HEAD + b"x: y\r\n" * 101 + b"\r\n", 431, "more than 100 headers"),
    ("large headers", HEAD + LONG * 40 + b"\r\n", 431, "more than 32768 bytes"),
    ("a large header", HEAD + b"x: " + b"y" * 300_000, 431, "more than 32768 bytes"),
    ("a large name", HEAD + b"y" * 300_000, 431, "more than 32768 bytes"),
    ("many trailers", CHUNKED + b"0\r\n" + b"x: y\r\n" * 101 + b"\r\n", 431, "more than 100 headers"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "status", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_could_be_read_in_two_ways_or_has_no_end_is_refused(
    ingress: Pretend, sent: bytes, status: int, said: str
) -> None:
    before = num_refused(ingress, status)
    with connection(ingress) as client:
        client.sendall(sent)
        received = all_of(client)
    [(found, answer)] = answers(received)
    assert found == status
    assert said in answer["error"]
    assert b"connection: close" in received
    assert num_refused(ingress, status) == before + 1
    assert ingress.transport.num_open == 0
    with connection(ingress) as client:
        client.sendall(GOOD)
        assert one_of(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_byte_by_byte_it_is_the_same(ingress: Pretend, sent: bytes) -> None:
    """But for what is much too long, whose end nobody waits for."""
    with connection(ingress) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(sent), max(1, len(sent) // 100)):
                client.sendall(sent[at : at + max(1, len(sent) // 100)])
        [(status, _)] = answers(all_of(client))
    assert status in (400, 414, 417, 431, 501, 505)


def test_a_good_request_before_a_bad_one_is_answered_first(ingress: Pretend) -> None:
    with connection(ingress) as client:
        client.sendall(GOOD + GOOD + b"GET /v2 HTTP/1.1\r\n\r\n" + GOOD)
        assert [status for status, _ in answers(all_of(client))] == [200, 200, 400]
    ingress.transport.pause_s = 0.05
    body = json.dumps({"inputs": [1, 2, 3, 4]}).encode()
    slow = (
        b"POST /models/iris:predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    )
    try:
        with connection(ingress) as client:
            client.sendall(slow + CHUNKED + b"zz\r\n")
            assert [status for status, _ in answers(all_of(client))] == [200, 400]
    finally:
        ingress.transport.pause_s = 0.0


def test_requests_in_one_go_are_answered_in_their_order(ingress: Pretend) -> None:
    paths = [b"/v2", b"/v2/health/live", b"/nothing", b"/v2/models/iris/ready"]
    with connection(ingress) as client:
        for path in paths:
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
        client.sendall(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        found = answers(all_of(client))
    assert [status for status, _ in found] == [200, 200, 404, 200, 200]
    assert found[1][1] == {"live": True}
    assert found[3][1]["name"] == "iris"


def test_too_many_requests_in_one_go(ingress: Pretend) -> None:
    with connection(ingress) as client:
        client.sendall(GOOD * 50)
        found = [status for status, _ in answers(all_of(client))]
    assert found == [*[200] * 5, 429], "one runs, four wait"


def test_all_requests_of_a_connection_that_is_lost_end(ingress: Pretend) -> None:
    """Not the newest alone: uvicorn tells no other."""
    ingress.transport.pause_s = 300
    body = json.dumps({"inputs": [1, 2, 3, 4]}).encode()
    slow = (
        b"POST /models/iris:predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        + body
    )
    try:
        with connection(ingress) as client:
            client.sendall(slow + GOOD)
            until(lambda: ingress.transport.num_open == 1)
        until(lambda: ingress.transport.num_open == 0)
        until(lambda: ingress.metrics.in_flight == 0)
    finally:
        ingress.transport.pause_s = 0.0


@pytest.mark.parametrize(
    "sent", [b"GET /v2 HT", GOOD[:-2], HEAD + b"content-le"], ids=["line", "end", "header"]
)
def test_a_head_that_does_not_end(ingress: Pretend, sent: bytes) -> None:
    with connection(ingress) as client:
        client.sendall(sent)
        began = time.monotonic()
        [(status, answer)] = answers(all_of(client))
    assert status == 408
    assert answer["error"] == "the headers were not there within 0.2 s"
    assert time.monotonic() - began < 10


def test_a_head_that_comes_drop_by_drop(ingress: Pretend) -> None:
    """Each byte would win time, if the clock began anew with it."""
    with connection(ingress) as client, contextlib.suppress(ConnectionError):
        client.sendall(GOOD)
        assert one_of(client).startswith(b"HTTP/1.1 200")
        client.settimeout(0.02)
        deadline, received = time.monotonic() + 20, b""
        client.sendall(b"GET /v2 HTTP/1.1\r\nx: ")
        while not received and time.monotonic() < deadline:
            client.sendall(b"y")
            with contextlib.suppress(TimeoutError):
                received = client.recv(65536)
        assert received.startswith(b"HTTP/1.1 408")


def test_a_connection_on_which_nothing_comes(ingress: Pretend) -> None:
    with connection(ingress) as client:
        assert all_of(client) == b""


def test_a_body_that_nobody_reads_may_go_on_for_a_while(ingress: Pretend) -> None:
    """Its sender reads the answer; then it may ask again, or is left where it does not come to an end."""
    head = b"POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n"
    with connection(ingress) as client:
        client.sendall(head)
        assert one_of(client).startswith(b"HTTP/1.1 404")
        client.sendall(b"x" * 200_000 + GOOD)
        assert one_of(client).startswith(b"HTTP/1.1 200")
        client.sendall(head + b"x")
        assert one_of(client).startswith(b"HTTP/1.1 404")
        assert client.recv(65536) == b"", "it was left after linger_s"
    with connection(ingress) as client:
        client.sendall(head.replace(b"200000", b"99999999"))
        assert one_of(client).startswith(b"HTTP/1.1 404")
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                client.sendall(b"x" * 10_000)
        with pytest.raises(ConnectionError):
            client.sendall(b"x")


def test_a_client_that_does_not_read_is_left() -> None:
    is_over = threading.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
            await asyncio.sleep(0)
        is_over.set()

    with serving(replace(pretend(), app=flood), rules=RULES) as ingress, connection(ingress) as client:  # type: ignore[arg-type]
        client.sendall(GOOD)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert is_over.wait(20)


def test_headers_after_a_body_are_none(ingress: Pretend) -> None:
    """A key behind the body would pass what looks at keys in front of us."""
    body = b"GET /admin/keys HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    trailer = b"authorization: Bearer " + ingress.admin_key.encode() + b"\r\nconnection: close\r\n\r\n"
    with connection(ingress) as client:
        client.sendall(body + trailer)
        received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 401")


def test_another_protocol_is_declined_and_http_goes_on(ingress: Pretend) -> None:
    """As curl offers HTTP/2."""
    upgrade = (
        b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    )
    body = b'{"inputs": [1, 2, 3, 4]}'
    post = b"POST /models/iris:predict HTTP/1.1\r\nhost: localhost\r\n" + upgrade
    with connection(ingress) as client:
        client.sendall(GOOD[:-2] + upgrade + b"\r\n" + GOOD)
        client.sendall(
            post + b"content-length: %d\r\n\r\n" % len(body) + body + GOOD[:-2] + b"connection: close\r\n\r\n"
        )
        found = answers(all_of(client))
    assert [status for status, _ in found] == [200, 200, 200, 200]
    assert found[2][1]["label"] == "versicolor", "its body was its body, and no request"


def test_one_connection_too_many_is_told_so(ingress: Pretend) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            client = stack.enter_context(connection(ingress))
            client.sendall(GOOD)
            assert one_of(client).startswith(b"HTTP/1.1 200")
        with connection(ingress) as client:
            received = all_of(client)
        [(status, answer)] = answers(received)
        assert (status, "all the connections that it takes" in answer["error"]) == (503, True)
        assert b"retry-after: 1" in received
    until(lambda: ingress.gateway and ingress.gateway.num_connections == 0)
    assert httpx.get(f"{ingress.url}/v2", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("proxies", "client", "has_port"),
    [
        ((), "127.0.0.1", True),
        (("10.0.0.0/8",), "127.0.0.1", True),
        (("127.0.0.0/8",), "198.51.100.1", False),
    ],
)
def test_whose_request_it_is(proxies: tuple[str, ...], client: str, has_port: bool) -> None:
    found = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope["client"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    settings = GatewaySettings(trusted_proxies=proxies)
    with serving(replace(pretend(), app=app), settings=settings) as ingress:  # type: ignore[arg-type]
        headers = {"x-forwarded-for": "1.1.1.1, 198.51.100.1"}
        assert httpx.get(ingress.url, headers=headers, trust_env=False).status_code == 204
    [(address, port)] = found
    assert (address, port > 0) == (client, has_port)


def test_nothing_says_what_runs_here(ingress: Pretend) -> None:
    answer = httpx.get(f"{ingress.url}/v2", trust_env=False)
    assert "server" not in answer.headers
    assert "date" in answer.headers


def test_an_idle_connection_is_closed_after_a_while() -> None:
    with (
        serving(pretend(), settings=GatewaySettings(keep_alive_s=1)) as ingress,
        connection(ingress) as client,
    ):
        for _ in range(4):
            client.sendall(GOOD)
            assert one_of(client).startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # busy for longer than idle ones are kept
        client.sendall(GOOD)
        assert one_of(client).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert client.recv(65536) == b""
        assert 0.8 < time.monotonic() - began < 10


@pytest.mark.parametrize("asked", [False, True])
def test_line_ends_alone_keep_no_connection(asked: bool) -> None:
    rules = Rules(head_s=0.5)
    with (
        serving(pretend(), settings=GatewaySettings(keep_alive_s=1), rules=rules) as ingress,
        connection(ingress) as client,
    ):
        if asked:
            client.sendall(GOOD)
            assert one_of(client).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        assert client.recv(65536) == b""


def test_http_1_0_without_a_host_is_answered_and_closed(ingress: Pretend) -> None:
    with connection(ingress) as client:
        client.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert answers(all_of(client)) == [(200, {"live": True})]


def test_a_fault_of_ours_before_a_request_begins_is_logged(
    ingress: Pretend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("eagleray.serving.gateway.face.check_head", lambda *_: 1 / 0)
    with connection(ingress) as client:
        client.sendall(GOOD)
        [(status, _)] = answers(all_of(client))
    assert status == 400
    assert "a request could not be begun" in caplog.text


def test_uvicorn_has_what_a_face_takes_from_it() -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    ours = {
        "connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing", "on_url",
        "on_message_begin", "on_header", "on_headers_complete", "on_body", "on_message_complete", "shutdown",
        "_start_asgi_task", "on_response_complete", "_unset_keepalive_if_required",
        "timeout_keep_alive_handler",
    }  # fmt: skip
    assert ours <= set(vars(HttpToolsProtocol)), "uvicorn moved it: adapt serving/gateway/face.py"
    assert ours - {"timeout_keep_alive_handler"} <= set(vars(Face))
