"""Which workers of a formation there is no hope for, by what they have told, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Collection

from eagleray.training.member_ray260 import AWAITED_S, Member
from eagleray.training.patience import SLOW_FACTOR, Patience
from eagleray.training.station import BESIDE

DEADLOCK_S = 30.0
"""So long at least all ranks say that they wait: large gradients on a slow network take their time."""

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
        late = [one for one in members if not one.is_ready and asked_s > _come_out_s(one, patience)]
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


def _come_out_s(member: Member, patience: Patience) -> float:
    """How long it may need: who evaluates, or waits for the storage, looks up from that late."""
    is_beside = member.news is not None and member.news.doing in BESIDE
    return max(patience.regroup_limit_s(member.step_s), AWAITED_S if is_beside else 0.0)


def wait_for_each_other(members: Collection[Member], heartbeat_s: float) -> bool:
    """Whether all ranks wait, and longer than what they do ever takes: two do not reach each other, say.

    Not where that is not known: first steps, and a first commit, may send much.
    """
    return len(members) > 1 and all(_is_deadlocked(member, heartbeat_s) for member in members)


def _is_deadlocked(member: Member, heartbeat_s: float) -> bool:
    if member.news is None or member.is_ready:
        return False
    is_known = member.news.step_s > 0 and member.news.usual_s > 0
    usual_s = max(member.news.step_s, member.news.usual_s)
    return is_known and member.waited_s > max(heartbeat_s, DEADLOCK_S, SLOW_FACTOR * usual_s)
