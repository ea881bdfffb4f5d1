"""Large bodies in slots: what they hold is read by whom it is for, for as long as anybody reads it."""

from __future__ import annotations

import pytest

from eagleray.protocol import binary
from eagleray.serving.ingress.http import announced_bytes
from support.talking import INFER, connect, laned, nothing_lost, post, read


@pytest.mark.parametrize(
    ("length", "num_bytes"),
    [("0", 0), ("5", 5), ("007", 7), ("0" * 14 + "1000000", 1_000_000), ("0" * 5000, 0), ("+5", 0), ("٣", 0)],
)
def test_zeros_in_front_of_a_length_change_nothing(length: str, num_bytes: int) -> None:
    assert announced_bytes({"content-length": length}) == num_bytes


@pytest.mark.parametrize("zeros", [0, 12, 13, 14, 1000])
def test_a_body_is_as_long_as_the_parser_says(zeros: int) -> None:
    """Else a request that stands inside another's body would be answered."""
    inner = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n"
    body = (b"x" * 100_000 + inner).ljust(1_000_000, b"y")
    sent = post(body, INFER, f"{binary.HEADER}: 100")
    sent = sent.replace(b"content-length: ", b"content-length: " + b"0" * zeros)
    begun = sent.index(b"\r\n\r\n") + 1004
    with (
        laned(max_body_bytes=2_000_000) as ingress,
        nothing_lost(ingress),
        connect(ingress) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(sent[:begun])
        connection.sendall(sent[begun:])
        connection.sendall(post())
        answer = read(stream)
        assert answer.status == 400
        if zeros > 12:
            assert "send it without zeros in front" in answer.error
            assert stream.read() == b""
        else:
            assert "JSON" in answer.error
            assert read(stream).status == 200, "the one behind it is next"
