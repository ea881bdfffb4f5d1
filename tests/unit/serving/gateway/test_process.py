"""A gateway from its first connection to the end of its last, on real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray.errors import ServiceError
from eagleray.serving.gateway import listening
from eagleray.serving.gateway.process import Gateway
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.gateway.thread import LoopThread


class App:
    """Answers its name, after `hold` is set where the path is /held; streams until then for /stream."""

    def __init__(self, name: str) -> None:
        self.name, self.hold = name.encode(), threading.Event()
        self.num_answered = self.num_under_way = self.num_cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        self.num_under_way += 1
        try:
            if scope["path"] == "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            while scope["path"] in ("/held", "/stream") and not self.hold.is_set():
                await asyncio.sleep(0.002)
            if scope["path"] != "/stream":
                length = str(len(self.name)).encode()
                headers = [(b"content-length", length)]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self.name})
            self.num_answered += 1
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_under_way -= 1


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[App, Gateway, LoopThread]]]:
    """Starts a gateway in a thread of its own."""
    started: list[tuple[App, Gateway, LoopThread]] = []

    def make(name: str = "one", port: int = 0, **settings: Any) -> tuple[App, Gateway, LoopThread]:
        app, thread = App(name), LoopThread(name)
        gateway = Gateway(app, GatewaySettings(**settings), host="127.0.0.1", port=port, directory=tmp_path)
        started.append((app, gateway, thread))
        thread.submit(gateway.open()).result(10)
        return started[-1]

    yield make
    for app, gateway, thread in started:
        app.hold.set()
        if gateway.is_listening:
            thread.submit(gateway.close(2.0, notice_s=0.0)).result(10)
        thread.stop()


def until(condition: Callable[[], object], what: str = "no end") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def ask(gateway: Gateway, path: str = "/") -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{gateway.port}{path}", trust_env=False, timeout=60)


def test_what_is_under_way_is_answered_and_what_comes_later_is_not_taken(start) -> None:
    app, gateway, thread = start()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(gateway, "/held")))
    asking.start()
    until(lambda: app.num_under_way)
    closing = thread.submit(gateway.close(20.0, notice_s=0.0))
    until(lambda: not gateway.is_listening)
    with pytest.raises(httpx.ConnectError):
        ask(gateway)
    app.hold.set()
    closing.result(20)
    asking.join(20)
    assert [answer.content for answer in answers] == [b"one"]
    assert answers[0].headers["connection"] == "close"


def test_it_says_that_it_is_about_to_end_and_answers_all_the_same(start) -> None:
    app, gateway, thread = start()
    assert ask(gateway, "/v2/health/ready").status_code == 200
    closing = thread.submit(gateway.close(60.0, notice_s=60.0))
    until(lambda: gateway.state.is_draining)
    ready = ask(gateway, "/v2/health/ready")
    assert (ready.status_code, ready.headers["connection"]) == (503, "close")
    assert "about to end" in ready.json()["error"]
    assert ask(gateway).content == b"one"
    closing.cancel()
    assert app.num_under_way == 0


def test_what_does_not_end_is_given_up(start) -> None:
    app, gateway, thread = start()
    with httpx.stream("GET", f"http://127.0.0.1:{gateway.port}/stream", trust_env=False) as answer:
        pieces = answer.iter_bytes()
        assert next(pieces) == b"begun "
        thread.submit(gateway.close(0.1, notice_s=0.0)).result(20)
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    assert (app.num_cancelled, app.num_answered) == (1, 0)


def test_an_idle_connection_does_not_hold_up_the_end(start) -> None:
    _, gateway, thread = start()
    with httpx.Client(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as client:
        client.get("/")
        until(lambda: gateway.num_connections == 1)  # for a moment it is counted among the greetings, too
        began = time.monotonic()
        thread.submit(gateway.close(20.0, notice_s=0.0)).result(20)
        assert time.monotonic() - began < 5


def test_another_takes_over_without_a_failed_request(start) -> None:
    """As Serve replaces a replica: the new one listens on the port before the old one ends."""
    _, old, old_thread = start("old")
    failed: list[str] = []
    answers: list[tuple[bytes, bool]] = []  # each with whether the old one had ended when it was asked for
    has_ended, is_over = threading.Event(), threading.Event()

    def load(keeps_alive: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keeps_alive else 0)
        with httpx.Client(limits=limits, trust_env=False, timeout=60) as client:
            while not is_over.is_set():
                is_after = has_ended.is_set()
                try:
                    answers.append((client.get(f"http://127.0.0.1:{old.port}/").content, is_after))
                except httpx.HTTPError as error:
                    failed.append(repr(error))

    threads = [threading.Thread(target=load, args=(keeps_alive,)) for keeps_alive in (True, False)]
    for thread in threads:
        thread.start()
    until(lambda: answers.count((b"old", False)) > 20)
    start("new", old.port)
    old_thread.submit(old.close(20.0)).result(20)
    has_ended.set()
    until(lambda: answers.count((b"new", True)) > 100)
    is_over.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (b"old", True) not in answers


_CLIENTS = """
import json, socket, sys, threading, time
port, is_over, times, failed = int(sys.argv[1]), threading.Event(), [], []

def ask():
    while not is_over.is_set():
        began = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                sock.sendall(b"GET / HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n")
                with sock.makefile("rb") as answer:
                    if not answer.read().endswith(b"gateway"):
                        raise EOFError("no answer")
        except Exception as error:
            failed.append(repr(error))
        times.append(time.monotonic() - began)

threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads: thread.start()
sys.stdin.read()
is_over.set()
for thread in threads: thread.join()
print(json.dumps({"num": len(times), "failed": failed, "num_late": sum(time > 0.9 for time in times)}))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_fifty_take_over_one_after_another_without_a_failed_request(start) -> None:
    """Each client makes a connection for each request, so that some are being made whenever one ends."""
    _, old, old_thread = start("gateway")
    port = old.port
    command = [sys.executable, "-c", _CLIENTS, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        for _ in range(50):
            _, new, new_thread = start("gateway", port)
            old_thread.submit(old.close(20.0, notice_s=0.3)).result(20)
            old, old_thread = new, new_thread
        output, _ = clients.communicate("")
    found = json.loads(output)
    assert found["failed"] == [], f"of {found['num']}"
    assert found["num"] > 1000
    assert found["num_late"] <= found["num"] / 1000, "the kernel gives new connections to the other one"


def test_connections_that_wait_to_be_taken_are_taken_before_the_port_is_left(start) -> None:
    app, gateway, thread = start()

    async def hold_up() -> list[socket.socket]:
        """What connects while the loop does something else is the kernel's to keep."""
        found = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(20)]
        gateway._stop_listening()
        return found

    waiting = thread.submit(hold_up()).result(10)
    for connection in waiting:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    for connection in waiting:
        with contextlib.closing(connection), connection.makefile("rb") as answer:
            assert answer.read().endswith(b"one")
    assert app.num_answered == 20


def test_the_port_of_another_program_is_not_shared(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the kernel would let us in
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is in use by another program"):
            listening.listen("127.0.0.1", port, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_gateways_that_start_at_once_share_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks while the first has bound the port, and has not said so to its caller yet."""
    original, beside = listening._listener, []

    def slow(host: str, port: int) -> socket.socket:
        found = original(host, port)
        monkeypatch.setattr(listening, "_listener", original)
        beside.append(listening.listen(host, found.getsockname()[1], tmp_path))
        return found

    monkeypatch.setattr(listening, "_listener", slow)
    first = listening.listen("127.0.0.1", 0, tmp_path)
    assert first.listener.getsockname() == beside[0].listener.getsockname()
    for place in (first, *beside):
        place.leave()


def test_the_port_of_a_gateway_that_was_killed_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from eagleray.serving.gateway import listening\n"
        "place = listening.listen('127.0.0.1', 0, pathlib.Path(sys.argv[1]))\n"
        "print(place.listener.getsockname()[1], flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        port = int(killed.stdout.readline())
        beside = listening.listen("127.0.0.1", port, tmp_path)  # both of one cluster
        beside.leave()
        killed.kill()
        killed.wait()
    with socket.create_server(("127.0.0.1", port)):
        pass
    mine = listening.listen("127.0.0.1", port, tmp_path)
    assert list(tmp_path.iterdir()) == [mine.claim], "the killed one's file is gone"
    mine.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"192\.0\.2\.1 is no address of this machine"):
        listening.listen("192.0.2.1", 8000, tmp_path)


def test_a_loop_that_hangs_is_noticed() -> None:
    thread = LoopThread("hangs")
    is_over = threading.Event()

    async def hang() -> None:
        is_over.wait()

    done = thread.submit(hang())
    until(lambda: thread.silent_s > 0.7, "it seems to turn")
    is_over.set()
    done.result(10)
    until(lambda: thread.silent_s < 0.7)
    thread.stop()
    assert not thread.is_alive
