"""What the tests of the fast lane share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from eagleray.serving.gateway.lane_call import LaneCall
from eagleray.serving.gateway.lane_stream import LaneStream
from support.serving import Pretend
from support.streams import laned


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The routes of the requests that have taken the lane."""
    found: list[str] = []
    start = LaneCall.start

    def noted(call: LaneCall) -> None:
        found.append(call._place.route)
        start(call)

    monkeypatch.setattr(LaneCall, "start", noted)
    return found


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of the requests that have taken the lane: "answered" or "left"."""
    found: list[str] = []
    finish, hand_over = LaneStream._finish, LaneStream._hand_over

    def finished(call: LaneStream, *arguments: Any) -> None:
        found.append("answered")
        finish(call, *arguments)

    def left(call: LaneStream) -> None:
        found.append("left")
        hand_over(call)

    monkeypatch.setattr(LaneStream, "_finish", finished)
    monkeypatch.setattr(LaneStream, "_hand_over", left)
    return found


@pytest.fixture
def streaming(fates: list[str]) -> Iterator[Pretend]:
    """An ingress whose texts take the fast lane."""
    with laned() as found:
        yield found


@pytest.fixture(scope="module")
def bounded() -> Iterator[Pretend]:
    """One for each module, in front of everything that is asked there; bodies have at most 4 MiB."""
    with laned(max_body_bytes=4 << 20) as found:
        yield found
