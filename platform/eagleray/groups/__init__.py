"""Process groups: how they are made, watched, broken and closed. torch is imported inside the functions."""

from eagleray.groups.connections import quicken, unsent_bytes
from eagleray.groups.group import Backend, Endpoint, Group
from eagleray.groups.making import (
    are_broken,
    break_groups,
    broken_s,
    call_when_broken,
    close,
    close_all,
    form,
    forming,
    leave,
    new_group,
    telling_losses,
)
from eagleray.groups.waiting import WAKES_S, await_work

__all__ = [
    "WAKES_S",
    "Backend",
    "Endpoint",
    "Group",
    "are_broken",
    "await_work",
    "break_groups",
    "broken_s",
    "call_when_broken",
    "close",
    "close_all",
    "form",
    "forming",
    "leave",
    "new_group",
    "quicken",
    "telling_losses",
    "unsent_bytes",
]
