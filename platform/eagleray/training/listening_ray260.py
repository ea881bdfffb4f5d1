"""The driver's ear: asks a run's workers for news all the time, and knows when it was deaf itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from eagleray.training.member_ray260 import Member
from eagleray.training.reservation_ray260 import last_line
from eagleray.training.station import News

TICK_S = 0.05
DEAF_S = 1.0
"""From one time to the next takes a tick. What takes longer than this is this process's own doing (it was
stopped, frozen with its container, swapped out): answers may lie there unheard, and nobody was silent."""


class Ear:
    """Asks workers, and hears those that answer. For one thread."""

    def __init__(self) -> None:
        self._heard_at: float | None = None

    def hear(self, members: Sequence[Member]) -> list[tuple[Member, News | str]]:
        """Ask all, and wait for a tick at most: who has answered, and what, or why it never will."""
        for member in members:
            member.ask()
        pending = {member.pending: member for member in members}
        if not pending:
            time.sleep(TICK_S)
            return []
        ray.wait(list(pending), timeout=TICK_S)
        done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        return [(pending[reference], _answer(pending[reference], reference)) for reference in done]

    def was_deaf_s(self, members: Sequence[Member]) -> float:
        """For how long nothing could be heard since the last call, seconds; nobody is blamed for it."""
        now = time.monotonic()
        deaf_s = 0.0 if self._heard_at is None else max(0.0, now - self._heard_at - DEAF_S)
        self._heard_at = now
        for member in members:
            member.forgive(deaf_s)
        return deaf_s


def _answer(member: Member, reference: Any) -> News | str:
    member.pending = None
    try:
        return ray.get(reference)
    except RayActorError as error:
        return "its process ended" if "died" in str(error) else last_line(error)
    except RayError as error:
        return last_line(error)
