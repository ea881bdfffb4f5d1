"""A gateway with a fast lane, asked for streamed texts by plain sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from eagleray.serving.gateway.rules import Rules
from support.serving import Pretend, pretend, serving

COMPLETIONS, CHAT, STREAM = "/v1/completions", "/v1/chat/completions", "/v2/models/gpt/generate_stream"
TEXT = 'a"\u2028€'
CHANGING = (b"date", b"x-request-id", b"x-ratelimit-reset", b"traceparent", b"server-timing")


@contextmanager
def laned(rules: Rules | None = None, **limits: Any) -> Iterator[Pretend]:
    ingress = pretend(over_links=True, **limits)
    assert ingress.links is not None
    try:
        with serving(ingress, rules=rules):
            yield ingress
    finally:
        ingress.links.close()


def until(condition: Callable[[], object], what: str = "no end") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def connect(ingress: Pretend) -> socket.socket:
    found = urlsplit(ingress.url)
    return socket.create_connection((found.hostname or "", found.port or 0), timeout=60)


def post(values: Any, path: str = COMPLETIONS, *lines: str) -> bytes:
    body = values if isinstance(values, bytes) else json.dumps(values).encode()
    first = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *lines]
    return "\r\n".join(first).encode() + b"\r\n\r\n" + body


def completion(**changes: Any) -> dict[str, Any]:
    return {"model": "gpt", "prompt": TEXT, "max_tokens": 6, "stream": True, **changes}


def chat(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": TEXT}]
    return {"model": "gpt/versions/1", "messages": messages, "max_tokens": 30, "stream": True, **changes}


def generation(text: Any = TEXT, **parameters: Any) -> dict[str, Any]:
    return {"text_input": text, "parameters": {"max_tokens": 6, **parameters}}


Answer = tuple[int, dict[bytes, bytes], bytes]


def read_head(stream: Any) -> tuple[int, dict[bytes, bytes]]:
    status = int(stream.readline().split()[1])
    found: dict[bytes, bytes] = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b": ")
        found[name] = value
    return status, found


def read_chunk(stream: Any) -> bytes:
    size = int(stream.readline(), 16)
    data = stream.read(size)
    assert stream.readline() == b"\r\n"
    return data


def read(stream: Any) -> Answer:
    """One answer of a file made of a socket."""
    status, found = read_head(stream)
    if found.get(b"transfer-encoding") != b"chunked":
        return status, found, stream.read(int(found.get(b"content-length", b"0")))
    return status, found, b"".join(iter(lambda: read_chunk(stream), b""))


def exchange(ingress: Pretend, sent: bytes, number: int = 1) -> list[Answer]:
    with connect(ingress) as connection, connection.makefile("rb") as stream:
        connection.sendall(sent)
        return [read(stream) for _ in range(number)]


def plain(answer: Answer) -> Answer:
    """Without what differs from one time to another; the names of what Server-Timing tells stay."""
    status, found, body = answer
    spans = re.sub(rb"dur=[0-9.]+", b"dur=", found.get(b"server-timing", b""))
    body = re.sub(rb'"id":"(chat)?cmpl-[0-9a-f]+"', rb'"id":"\1"', body)
    body = re.sub(rb'"created":[0-9]+', b'"created":0', body)
    body = re.sub(rb"under request [0-9a-f]+", b"under request", body)
    kept = {name: value for name, value in found.items() if name not in CHANGING}
    return status, {**kept, b"server-timing": spans}, body


def pieces_of(body: bytes) -> list[str]:
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    return [json.loads(line)["choices"][0]["text"] for line in lines if line != "[DONE]"]
