"""Which workers of a formation there is no hope for, by what they have told, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Collection

from eagleray.training.member_ray260 import Member
from eagleray.training.patience import Patience

Found = list[tuple[Member, str]]
"""Whom to give up, and why, in words."""


def hopeless(
    members: Collection[Member],
    heartbeat_s: float,
    patience: Patience,
    *,
    trains: bool = False,
    asked_s: float | None = None,
) -> Found:
    """Those who do not answer; where all do, who hangs in a formation that `trains`, or does not come out.

    `asked_s`: for how long they have been asked to come out; None: they have not.
    """
    found = silent(members, heartbeat_s)
    if not found and trains:
        found = _hung(members, heartbeat_s)
    elif not found and asked_s is not None:
        late = [one for one in members if not one.is_ready and asked_s > patience.regroup_limit_s(one.step_s)]
        found = [(member, "it does not come out of the formation that was left") for member in late]
    return found


def silent(members: Collection[Member], heartbeat_s: float) -> Found:
    """Those who do not answer."""
    found = [member for member in members if member.is_silent(heartbeat_s)]
    return [(member, f"it has not answered for {member.silent_s():.1f} s") for member in found]


def _hung(members: Collection[Member], heartbeat_s: float) -> Found:
    """Who hangs while others wait for it; one at a time, since the next may hang for its sake."""
    for member in members:
        hung_s = member.hung_s(heartbeat_s, [other for other in members if other is not member])
        if hung_s is not None:
            return [(member, f"it has hung for {hung_s:.1f} s")]
    return []
