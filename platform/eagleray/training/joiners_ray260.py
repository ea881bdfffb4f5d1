"""Workers on their way into a run's formation, and spares, which wait beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.training.member_ray260 import Member
from eagleray.training.reservation_ray260 import Reservation
from eagleray.training.seat_ray260 import Seat


class Joiners:
    """Starts workers on seats that have none. The caller holds `lock` where it calls anything here."""

    def __init__(self, reservation: Reservation, lock: threading.RLock):
        self.members: list[Member] = []
        """Whose train function runs: those who wait for an order (`ready`), and those who will soon."""
        self._reservation, self._lock = reservation, lock
        self._starting: set[Seat] = set()
        """With workers that are not up yet."""
        self._launch: Callable[[Worker], None] | None = None

    def open(self, launch: Callable[[Worker], None]) -> None:
        """From now on workers may come; `launch` gives one its context, and starts its train function."""
        self._launch = launch

    def close(self) -> None:
        """End all that are here or on their way."""
        self._launch = None
        for seat in [*(member.seat for member in self.members), *self._starting]:
            self._reservation.close(seat)
        self.members = []
        self._starting.clear()

    def __len__(self) -> int:
        return len(self.members) + len(self._starting)

    @property
    def ready(self) -> list[Member]:
        """Those who wait for an order, who came first first. A seat that was given back has no worker."""
        return [member for member in self.members if member.is_ready and member.seat.actor is not None]

    def lose(self, member: Member) -> None:
        """One of them has ended."""
        self.members.remove(member)
        self._reservation.close(member.seat)

    def leave(self, members: Collection[Member]) -> None:
        """These are in a formation now."""
        self.members = [member for member in self.members if member not in members]

    def fetch(self, count: int) -> None:
        """Get so many more, as far as there are seats: then their processes, then their readiness."""
        for seat in self._reservation.vacant(count):
            if actor := self._reservation.spawn(seat):
                self._starting.add(seat)
                threading.Thread(target=self._admit, args=(seat, actor), daemon=True).start()

    def _admit(self, seat: Seat, actor: Any) -> None:
        """Wait until a new worker is up, and start its train function."""
        member, launch = None, self._launch
        try:
            metadata: Any = ray.get(actor.get_metadata.remote())
            bundle = self._reservation.bundle
            member = Member(Worker(actor, metadata, bundle, placement_group_bundle_index=seat.index), seat)
            if launch is not None:
                launch(member.worker)
        except RayError:
            member = None  # its process or its node ended: another is fetched
        with self._lock:
            self._starting.discard(seat)
            if member is None or self._launch is None:
                self._reservation.close(seat)
            else:
                self.members.append(member)
