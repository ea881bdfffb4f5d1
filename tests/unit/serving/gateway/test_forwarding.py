"""Whose request it is, behind proxies that are listed and proxies that are not."""

from __future__ import annotations

import json

import pytest

from eagleray.serving.gateway.forwarding import Proxies
from eagleray.serving.gateway.settings import GatewaySettings
from support.serving import pretend, serving
from support.talking import BODY, INFER, connect, exchange, post


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # anybody can write it
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # the client wrote 1.1.1.1
        ("10.1.2.3", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["198.51.100.1, 10.9.9.9"], "198.51.100.1"),  # two proxies, both listed
        ("10.1.2.3", ["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
        ("10.1.2.3", ["10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["198.51.100.1:5555"], "198.51.100.1"),
        ("10.1.2.3", ["[2001:db8::1]:5555"], "2001:db8::1"),
        ("10.1.2.3", ["2001:db8::1"], "2001:db8::1"),
        ("10.1.2.3", ["unknown"], "10.1.2.3"),
        ("10.1.2.3", ["1.1.1.1, <script>, 10.9.9.9"], "10.9.9.9"),
        ("10.1.2.3", ["", ","], "10.1.2.3"),
        ("192.168.0.7", ["198.51.100.1"], "198.51.100.1"),
        ("192.168.0.8", ["198.51.100.1"], "192.168.0.8"),
        ("fd00::1", ["198.51.100.1"], "198.51.100.1"),
        ("/run/socket", ["198.51.100.1"], "/run/socket"),
    ],
)
def test_the_last_address_that_is_no_proxy_of_ours(peer: str, forwarded: list[str], client: str) -> None:
    assert Proxies(["10.0.0.0/8", "192.168.0.7", "fd00::/8"]).client_of(peer, forwarded) == client


def test_where_none_is_listed_nobody_is_believed() -> None:
    assert Proxies().client_of("127.0.0.1", ["198.51.100.1"]) == "127.0.0.1"


class Lines(list[tuple[int, str]]):
    """An access log: statuses and clients."""

    def write(self, line: bytes) -> None:
        values = json.loads(line)
        self.append((values["status"], values["client"]))


@pytest.mark.parametrize("is_laned", [False, True], ids=["application", "lane"])
def test_the_access_log_has_the_client_of_what_is_refused_at_once_too(is_laned: bool) -> None:
    """Who tries keys behind a proxy could not be told from others."""
    ingress, lines = pretend(over_links=is_laned), Lines()
    ingress.app.access_log = lines  # type: ignore[assignment]
    with serving(ingress, settings=GatewaySettings(trusted_proxies=("127.0.0.1",))):
        forwarded = "x-forwarded-for: 203.0.113.7"
        wrong = "authorization: Bearer er_00000000_" + "0" * 64
        exchange(ingress, post(BODY, INFER, forwarded), post(BODY, INFER, forwarded, wrong))
    if ingress.links is not None:
        ingress.links.close()
    assert lines == [(200, "203.0.113.7"), (401, "203.0.113.7")]


HEAD, FORWARDED = b"POST /v2 HTTP/1.1\r\nhost: localhost\r\n", b"x-forwarded-for: 203.0.113.7\r\n"
CLIENT, PROXY = "203.0.113.7", "127.0.0.1"


@pytest.mark.parametrize("is_laned", [False, True], ids=["application", "lane"])
@pytest.mark.parametrize(
    ("sent", "status", "client"),
    [
        (b"GET /v2 HTTP/1.1\r\n" + FORWARDED + b"\r\n", 400, CLIENT),
        (HEAD + FORWARDED + b"transfer-encoding: gzip, chunked\r\n\r\n", 501, CLIENT),
        (HEAD + FORWARDED + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400, CLIENT),
        (HEAD + FORWARDED + b"x: y\r\n" * 101 + b"\r\n", 431, PROXY),
        (HEAD + FORWARDED + b"content-length: 0\r\n\r\n\0", 400, PROXY),
    ],
    ids=["its head", "its coding", "its body", "half a head, without the proxy's line maybe", "the next"],
)
def test_the_access_log_has_the_client_of_what_is_no_http_too_where_its_head_was_read(
    is_laned: bool, sent: bytes, status: int, client: str
) -> None:
    ingress, lines = pretend(over_links=is_laned), Lines()
    ingress.app.access_log = lines  # type: ignore[assignment]
    with serving(ingress, settings=GatewaySettings(trusted_proxies=(PROXY,))), connect(ingress) as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            pass
    if ingress.links is not None:
        ingress.links.close()
    assert [line for line in lines if line[0] == status] == [(status, client)]
