"""Workers on their way into a run's formation, and spares, which wait beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.training.member_ray260 import Member
from eagleray.training.reservation_ray260 import Reservation, last_line
from eagleray.training.seat_ray260 import START_LIMIT_S, Seat

MAX_WAIT_S = 60.0
"""Between two tries, where none of them gets anybody ready."""


class Joiners:
    """Starts workers on seats that have none. The caller holds `lock` where it calls anything here."""

    def __init__(self, reservation: Reservation, lock: threading.RLock, say: Callable[[str], None]):
        self.members: list[Member] = []
        """Whose train function runs: those who wait for an order (`ready`), and those who will soon."""
        self._reservation, self._lock = reservation, lock
        self._starting: set[Seat] = set()
        """With workers that are not up yet."""
        self._launch: Callable[[Worker], None] | None = None
        self._say = say
        self._is_asking = False
        """Seats are being asked for."""
        self._data_digest: str | None = None
        """Of the data that the formation has; None: there has been none."""
        self._num_failed, self._not_before = 0, 0.0
        """Tries in a row that got nobody ready, and when the next may be made (`time.monotonic()`)."""

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
        """Those who may be ordered in, who came first first. A seat that was given back has no worker."""
        return [
            one for one in self.members if one.is_ready and one.seat.actor is not None and self._fits(one)
        ]

    def _fits(self, member: Member) -> bool:
        """Whether it has the same data as those in the formation, who could not go on with it otherwise."""
        return self._data_digest in (None, member.data_digest)

    def hopeless(self, heartbeat_s: float) -> list[tuple[Member, str]]:
        """Those who will never join, and why."""
        found = ((member, self._why_hopeless(member, heartbeat_s)) for member in self.members)
        return [(member, reason) for member, reason in found if reason is not None]

    def _why_hopeless(self, member: Member, heartbeat_s: float) -> str | None:
        if member.is_over:
            return "its train function has ended"
        if member.is_silent(heartbeat_s):
            return f"it has not answered for {member.silent_s():.1f} s"
        if member.is_ready and not self._fits(member):
            ours, theirs = (self._data_digest or "")[:12], member.data_digest[:12]
            where = member.worker.metadata.node_ip
            return f"the data on {where} has digest {theirs}, the run's has {ours}; put the same there"
        return None

    def lose(self, member: Member, reason: str) -> None:
        """One of them has ended, or is given up."""
        self.members.remove(member)
        self._fail(member.seat, reason, was_ready=member.is_ready and self._fits(member))

    def leave(self, members: Sequence[Member]) -> None:
        """These are in a formation now, by rank."""
        self._data_digest = members[0].data_digest
        num_before = len(self.members)
        self.members = [member for member in self.members if member not in members]
        if len(self.members) < num_before:
            self._num_failed = 0

    def fetch(self, count: int) -> None:
        """Get so many more, as far as there are seats: then their processes, then their readiness.

        Nobody for a while after one was lost: what ends each of them at once would have all seats spin. Seats
        are asked for in a thread and without the lock: where the GCS is away, that takes until it is back.
        """
        if self._is_asking or time.monotonic() < self._not_before:
            return
        self._is_asking = True
        threading.Thread(target=self._seat, args=(count, self._launch), daemon=True).start()

    def _seat(self, count: int, launch: Callable[[Worker], None] | None) -> None:
        """Make workers on up to so many free seats, unless those of `launch` are over meanwhile."""
        seats: list[Seat] = []
        try:
            seats = self._reservation.vacant(count)
        except Exception as error:
            with self._lock:
                self._delay(f"seats cannot be asked for ({last_line(error)})")
        with self._lock:
            self._is_asking = False
            for seat in seats if self._launch is launch is not None else []:
                if seat.actor is None and (actor := self._reservation.spawn(seat)):
                    self._starting.add(seat)
                    threading.Thread(target=self._admit, args=(seat, actor), daemon=True).start()

    def _admit(self, seat: Seat, actor: Any) -> None:
        """Wait until a new worker is up, and start its train function."""
        member, launch, reason = None, self._launch, ""
        try:
            metadata: Any = ray.get(actor.get_metadata.remote(), timeout=START_LIMIT_S)
            bundle = self._reservation.bundle
            member = Member(Worker(actor, metadata, bundle, placement_group_bundle_index=seat.index), seat)
            if launch is not None:
                launch(member.worker)
        except GetTimeoutError:  # it was stopped, say: nobody else looks at it before it is up
            member, reason = None, f"it was not up within {START_LIMIT_S:.0f} s"
        except Exception as error:  # its process or its node ended, say: another is fetched
            member, reason = None, last_line(error)
        with self._lock:
            self._starting.discard(seat)
            if self._launch is None:
                self._reservation.close(seat)
            elif member is None:
                self._fail(seat, reason)
            else:
                self.members.append(member)

    def _fail(self, seat: Seat, reason: str, *, was_ready: bool = False) -> None:
        """One was lost; where its seat was not given back meanwhile, that is a failure."""
        is_failure = seat.actor is not None
        self._reservation.close(seat)
        if is_failure:
            self._delay(f"a worker that was to join was lost ({reason})", was_ready=was_ready)

    def _delay(self, what: str, *, was_ready: bool = False) -> None:
        """Have the next try wait, and say so."""
        now = time.monotonic()
        if now >= self._not_before:  # else it fell together with another
            self._num_failed = 1 if was_ready else self._num_failed + 1
            self._not_before = now + min(2.0 ** (self._num_failed - 1), MAX_WAIT_S)
        wait_s = self._not_before - now
        self._say(f"{what}; tried again after {wait_s:.0f} s")
