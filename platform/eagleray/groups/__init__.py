"""Process groups: how they are made, watched, broken and closed. torch is imported inside the functions."""

from eagleray.groups.connections import quicken, unsent_bytes
from eagleray.groups.group import Backend, Endpoint, Group
from eagleray.groups.making import (
    are_broken,
    break_groups,
    close,
    close_all,
    form,
    forming,
    new_group,
    telling_losses,
)

__all__ = [
    "Backend",
    "Endpoint",
    "Group",
    "are_broken",
    "break_groups",
    "close",
    "close_all",
    "form",
    "forming",
    "new_group",
    "quicken",
    "telling_losses",
    "unsent_bytes",
]
