"""A collective that ends while somebody looks whether it has."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest

from eagleray import groups


class Work:
    """Ends right behind the first look at it, whose time is over by then."""

    def __init__(self, error: str = "") -> None:
        self.error, self.num_looks = error, 0

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.num_looks += 1
        if self.num_looks == 1:
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise RuntimeError(self.error)
        return True

    def is_completed(self) -> bool:
        return True


def test_it_is_no_failure_that_a_collective_ends_as_the_look_at_it_is_over() -> None:
    """The thread may not run for a while between the two: on a busy machine a healthy run was formed anew."""
    work = Work()
    groups.await_work(cast("Any", work), cast("Any", None))
    assert work.num_looks == 2


def test_what_failed_meanwhile_is_told() -> None:
    with pytest.raises(RuntimeError, match="Connection reset"):
        groups.await_work(cast("Any", Work("Connection reset by peer")), cast("Any", None))
