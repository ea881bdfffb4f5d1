"""Waiting for a collective of a group that another thread may break."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from eagleray.groups.group import Group
from eagleray.groups.making import broken_s, leave

if TYPE_CHECKING:
    from torch.distributed import Work

WAKES_S = 0.5
"""What a broken group wakes it wakes within milliseconds; so long after that nothing will."""
_LOOK_S = 0.1


def await_work(work: Work, group: Group) -> None:
    """Return when a collective is over (not a send or a receive, which a time limit would break).

    Raises: RuntimeError: it failed, or the group was broken and does not wake who waits in it.
    """
    while True:
        try:
            work.wait(timedelta(seconds=_LOOK_S))
            return
        except RuntimeError:
            if work.is_completed():  # maybe since the look: then that was no failure
                work.wait()
                return
            if broken_s(group) > WAKES_S:
                leave(group)
                raise RuntimeError("the connection was lost in the middle of a message") from None
