"""HTTP byte by byte, to a gateway of the tests; and whether anything was lost behind it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from eagleray.serving.admission.door import NOBODY
from eagleray.serving.admission.ticket import Ticket
from support.links import num_free
from support.serving import Pretend, pretend, serving

IRIS = {"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
INFER, DIGITS = "/v2/models/iris/infer", "/v2/models/digits/infer"
PREDICT, COMPLETE = "/models/iris:predict", "/v1/completions"
BODY = json.dumps(IRIS).encode()


class Answer(NamedTuple):
    """Of a gateway."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """What it says is wrong."""
        values = json.loads(self.body)["error"]
        return values["message"] if isinstance(values, dict) else values


@contextmanager
def laned(**limits: Any) -> Iterator[Pretend]:
    """A gateway with a fast lane over links to pretending replicas."""
    found = pretend(over_links=True, **limits)
    assert found.links is not None
    with serving(found):
        yield found
    found.links.close()


def until(condition: Callable[[], object], what: str = "no end", timeout_s: float = 20.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def connect(ingress: Pretend) -> socket.socket:
    """To its gateway."""
    found = urlsplit(ingress.url)
    return socket.create_connection((found.hostname or "", found.port or 0), timeout=60)


def head(path: str = INFER, length: int = len(BODY), *lines: str, method: str = "POST") -> bytes:
    """Of a request; of one without a length where that is -1."""
    first = [f"{method} {path} HTTP/1.1", "host: localhost"]
    length_line = [f"content-length: {length}"] if length >= 0 else []
    return "\r\n".join([*first, *length_line, *lines]).encode() + b"\r\n\r\n"


def post(body: bytes = BODY, path: str = INFER, *lines: str) -> bytes:
    """A whole request."""
    return head(path, len(body), *lines) + body


def read(stream: Any) -> Answer:
    """One answer, of a file made of a socket."""
    line = stream.readline()
    assert line, "the connection was closed without an answer"
    found: dict[str, str] = {}
    while line_of := stream.readline().strip():
        name, _, value = line_of.decode("latin-1").partition(": ")
        found[name] = value
    if found.get("transfer-encoding") == "chunked":
        return Answer(int(line.split()[1]), found, b"".join(iter(lambda: _chunk(stream), b"")))
    return Answer(int(line.split()[1]), found, stream.read(int(found.get("content-length", "0"))))


def _chunk(stream: Any) -> bytes:
    size = int(stream.readline(), 16)
    found = stream.read(size)
    stream.readline()
    return found


def exchange(ingress: Pretend, *sent: bytes) -> list[Answer]:
    """The answers to requests that are sent one after the other, on one connection."""
    found = []
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        for request in sent:
            connection.sendall(request)
            found.append(read(stream))
    return found


def lines_of(ingress: Pretend) -> list[Any]:
    """The gateway's ways to its replicas."""
    assert ingress.links is not None
    return [line for transport in ingress.links._by_loop.values() for line in transport._lines.values()]


def slots(ingress: Pretend) -> list[int]:
    """Free ones of each link."""
    return [num_free(link) for line in lines_of(ingress) for link in line.pool.links]


def open_tickets(ingress: Pretend) -> list[Ticket]:
    """Of requests without a key: no limit counts them, and nobody would miss one."""
    return list(ingress.app.admission._accounts[NOBODY].open)


def memory_mib() -> float:
    """Of this process, in which the gateway and its replicas are."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


@contextmanager
def nothing_lost(ingress: Pretend) -> Iterator[None]:
    """What comes in the block leaves no request, no ticket, no slot, no link behind; the next is answered."""
    free = slots(ingress)
    yield
    until(lambda: ingress.metrics.in_flight == 0, "a request is under way still")
    until(lambda: ingress.transport.num_open == 0, "a replica works still")
    links = [link for line in lines_of(ingress) for link in line.pool.links]
    until(lambda: not any(link.in_flight or link._slots for link in links), "a stream is open still")
    until(lambda: slots(ingress) == free, "a slot is taken still")
    assert all(
        not line.gate or line.gate.cost_under_way == line.gate.num_queued == 0 for line in lines_of(ingress)
    )
    assert open_tickets(ingress) == []
    assert exchange(ingress, post())[0].status == 200
