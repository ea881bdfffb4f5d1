"""Which requests go by Serve when a link did not answer them: none is begun more than twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from eagleray.serving.gateway.line import Line, goes_by_serve, is_second_try
from eagleray.serving.link.answers import Answer
from eagleray.serving.link.frames import TOO_LARGE, Kind
from eagleray.serving.link.retries import RetryBudget

AWAY, LOST = Answer(Kind.GOAWAY), Answer(Kind.LOST)
LARGE, BROKEN = Answer(Kind.FAILED, message=TOO_LARGE), Answer(Kind.FAILED, message="no")


def line(budget: RetryBudget) -> Line:
    return Line("app", cast("Any", SimpleNamespace(budget=budget)))


@pytest.mark.parametrize(
    ("was_lost", "answer", "goes", "is_second"),
    [
        (False, AWAY, True, False),
        (False, LOST, True, True),
        (False, LARGE, True, True),
        (False, BROKEN, False, None),
        (True, AWAY, True, True),
        (True, LOST, False, None),
        (True, LARGE, False, None),
    ],
)
def test_no_request_is_begun_more_than_twice(was_lost, answer, goes, is_second) -> None:
    request = cast("Any", SimpleNamespace(was_lost=was_lost))
    assert goes_by_serve(line(RetryBudget()), request, answer) is goes
    if goes:
        assert is_second_try(request, answer) is is_second


def test_what_was_lost_goes_by_serve_only_within_the_budget() -> None:
    found = line(RetryBudget(start=1.0))
    assert [goes_by_serve(found, None, LOST) for _ in range(2)] == [True, False]
    assert goes_by_serve(found, None, AWAY), "that is no second try"
