"""A run's formations, one after the other: each has a number, and follows from what happened to the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from eagleray.training.member_ray260 import Member
from eagleray.training.observer import Change, WorkerInfo
from eagleray.training.station import Formation


class Formations:
    """Orders workers into formations, and keeps what the next one is told of the one before."""

    def __init__(self, first_number: int, tell: Callable[[Change], None], note: Callable[[int, int], None]):
        """`note` keeps number and size of each before it is ordered; `tell` hears of it right after."""
        self.lost: dict[int, tuple[WorkerInfo, str]] = {}
        """By rank, of the formation that is left: who was lost, and why."""
        self._next_number, self._tell, self._note = first_number, tell, note
        self._num_before = 0
        self._left_at: float | None = None
        """When the formation was asked to stop, or given up, seconds since the epoch."""

    def begin(self) -> None:
        """All workers are new."""
        self._num_before, self._left_at = 0, None
        self.lost.clear()

    @property
    def is_nothing_held(self) -> bool:
        """The workers have not trained yet: what they know is in the checkpoint."""
        return self._num_before == 0

    @property
    def reasons(self) -> str:
        """Why workers were lost since the last order; empty where none was."""
        return "; ".join(reason for _, reason in self.lost.values())

    def leave(self) -> None:
        """The formation is asked to stop, or given up."""
        self._left_at = time.time()

    def lose(self, member: Member, reason: str) -> None:
        """One of them is gone."""
        if member.rank is not None:
            self.lost[member.rank] = (member.info(member.rank), reason)

    def order(self, members: Sequence[Member]) -> None:
        """Order these into the next one, by rank."""
        number, self._next_number = self._next_number, self._next_number + 1
        self._note(number, len(members))
        num_before, self._num_before, num_lost = self._num_before, len(members), len(self.lost)
        for rank, member in enumerate(members):
            member.order(Formation(number, rank, len(members), members[0].address, num_before, num_lost))
        workers = [member.info(rank) for rank, member in enumerate(members)]
        self._tell(Change(number, workers, num_before, dict(self.lost), time.time(), self._left_at))
        self.lost.clear()
        self._left_at = None
