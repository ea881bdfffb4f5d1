"""Nodes and worker processes of a run, asked for before the driver has imported torch or ray.train.

The autoscaler starts nodes, and the workers import what they need, while the driver does the same.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from eagleray.cluster.names import CLAIM_GROUP, NODE_ID_LABEL
from eagleray.errors import TrainingError
from eagleray.training.seat_ray260 import START_LIMIT_S, Seat, create_actor, spread, standing
from eagleray.training.stopping import Suspended

MAX_DEATHS_AT_START = 5
"""In a row, of workers whose node goes on living (killed for memory, say): then the run ends."""
GRACE_S = 1.0
"""How long a run that could begin waits for more seats."""
PLACED_EVERY_S = 0.1
_PROCESS, _NUMBERS = secrets.token_hex(3), itertools.count()
"""In names of placement groups: Ray wants each once, and those of a driver that died may still be there."""


class Reservation:
    """A run's seats, and the worker actors on them, made as soon as they are placed.

    A run of a fixed size has one placement group, whose bundles Ray spreads over the nodes. One that may
    shrink and grow has a group for each seat, so that each can be given back alone. (Actors made before their
    seats are placed would have Ray warn every second that no node type offers the group's resources.) The
    seats of a claim lie on the nodes that it was allotted units on (`allot`).

    Ray is asked without the lock: while the GCS is away an answer takes until it is back, and what the ledger
    allots, and who looks for a hang, would wait with it.

    What waits for seats waits without a limit, and says so: Ray Train would give up after 60 s, each time as
    a failure of the run's controller. But a node that died may take longer to come back: a new machine of a
    cloud, or one that somebody has to start again.
    """

    def __init__(
        self,
        bundle: Mapping[str, float],
        count: int,
        label_selector: Mapping[str, str],
        minimum: int | None = None,
        *,
        spares: int = 0,
        claim: str | None = None,
    ):
        """Ask for the seats.

        Args:
            bundle: resources of one worker.
            count: workers that are wanted to train.
            label_selector: of their nodes.
            minimum: workers that the run can train with; None: all of them.
            spares: seats beside them.
            claim: id of the one that the seats are taken under, as they are allotted; None: they are asked
                for here.
        """
        self.bundle, self.count, self.claim = dict(bundle), count, claim
        self.minimum = count if minimum is None else minimum
        self._selector = dict(label_selector)
        self._is_fixed = claim is None and self.minimum == count and spares == 0
        self.seats: list[Seat] = []
        if self._is_fixed:
            group = self._group(count)
            self.seats = [Seat(group, index, is_own=False) for index in range(count)]
        elif claim is None:
            self.seats = [self._own_seat() for _ in range(count + spares)]
        self.leave_by: float | None = None
        """By when seats that are leaving have to be given back, `time.monotonic()`."""
        self.is_suspended = False
        """All are leaving, and the run waits for others."""
        self.reason = ""
        """Why seats are leaving."""
        self.gave_back: Callable[[Seat], None] = lambda seat: None
        """Called when a seat that was leaving has been given back; from any thread."""
        self.check: Callable[[], None] = lambda: None
        """Called while seats are waited for; raises where there is no use in it."""
        self.why: Callable[[], str] = lambda: "a node is starting, busy or missing"
        """Why seats are waited for, in words."""
        self.placed_at: float | None = None
        self._lock = threading.RLock()
        self._has_made_ahead = False
        self._say: Callable[[str], None] = lambda _: None
        self._every_s, self._tell_after_s = 5.0, 5.0
        self._is_released = False
        self._closing: list[threading.Thread] = []
        """They tell Ray of seats that are closed."""
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._seat_first, daemon=True)
        self._thread.start()

    def _group(self, count: int, node: str | None = None) -> PlacementGroup:
        selector = self._selector if node is None else {NODE_ID_LABEL: node}
        selectors: Any = [selector] * count if selector else None
        name = "" if self.claim is None else f"{CLAIM_GROUP}{self.claim}:{_PROCESS}-{next(_NUMBERS)}"
        return placement_group(
            [self.bundle] * count, strategy="SPREAD", bundle_label_selector=selectors, name=name
        )

    def _own_seat(self, node: str | None = None) -> Seat:
        return Seat(self._group(1, node), 0, is_own=True, node=node)

    # What the claim has been allotted

    def allot(
        self,
        units: Mapping[str, int],
        *,
        leave_by: float | None = None,
        is_suspension: bool = False,
        reason: str = "",
    ) -> None:
        """Have so many seats by node, and no others; from any thread.

        Seats beyond them are leaving. Those without a worker that trains are given back at once; the others
        have to be closed by whoever has their workers stop.

        Args:
            units: seats by node id.
            leave_by: by when, `time.monotonic()`; None: there is no limit.
            is_suspension: the run goes on later, when it is allotted seats again.
            reason: why seats have to go, in words.
        """
        with self._lock:
            if self._is_released:
                return
            self.is_suspended, self.reason = is_suspension, reason
            self.leave_by = leave_by
            missing = Counter(units)
            for seat in sorted(self.seats, key=standing):
                if seat.node is not None:
                    seat.is_leaving = missing[seat.node] <= 0
                    missing[seat.node] -= 1
            left = [self._leave(seat) for seat in self.seats if seat.is_leaving and seat.rank is None]
        for one in left:
            self._let_go(*one)
        for node in missing.elements():  # one by one: where one fails, the others are known
            self._add(self._own_seat(node))

    def _add(self, seat: Seat) -> None:
        """Have a seat that has been asked for; it is given back where all of them have been meanwhile."""
        with self._lock:
            if not self._is_released:
                self.seats.append(seat)
                return
        remove_placement_group(seat.group)

    def used(self) -> Counter[str]:
        """Seats that a node has had, by its id: those of a claim."""
        return Counter(seat.node for seat in list(self.seats) if seat.node and seat.is_used)

    # The first start, before there is a worker group

    def _seat_first(self) -> None:
        try:
            self._await_seats()
            if not self._is_released:
                self._spawn_all()
                self._has_made_ahead = True
                self.placed_at = time.time()
        except Exception as error:  # told by `wait`, in the driver's own thread
            self._failure = error

    def _await_seats(self, tell: Callable[[float], None] = lambda _: None) -> None:
        """Return when enough seats are placed: all, or the minimum and then GRACE_S for the others."""
        started, enough_at = time.monotonic(), None
        while not self._is_released:
            self.check()
            if self.is_suspended:
                raise Suspended(self.reason)
            num_placed, now = sum(seat.is_placed for seat in list(self.seats)), time.monotonic()
            if num_placed >= self.minimum and enough_at is None:
                enough_at = now
            if num_placed >= self.count or (enough_at is not None and now - enough_at > GRACE_S):
                return
            tell(now - started)
            time.sleep(PLACED_EVERY_S)

    def _spawn_all(self) -> None:
        """Make the workers that train at first; spares come when those do."""
        for seat in spread(seat for seat in list(self.seats) if seat.is_placed)[: self.count]:
            if seat.actor is None:
                self.spawn(seat)

    def wait(self, say: Callable[[str], None], *, every_s: float = 5.0) -> float:
        """Block until the workers are being made; returns the time at which their nodes were there.

        `say` hears of the waiting, here and after later losses, at intervals that double up to a minute.

        Raises: Suspended: all that was allotted is to be given back.
        """
        self._say, self._every_s, self._tell_after_s = say, every_s, every_s
        started = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(min(every_s, 1.0))
            self.tell(time.monotonic() - started)
        if self._failure is not None:
            raise self._failure
        assert self.placed_at is not None
        return self.placed_at

    def tell(self, waited_s: float) -> None:
        """Say that seats are waited for, if enough time has passed since it was said last."""
        if waited_s < self._every_s:  # another wait
            self._tell_after_s = self._every_s
        if waited_s < self._tell_after_s:
            return
        self._tell_after_s = waited_s + min(max(waited_s, self._every_s), 60.0)
        self._say(f"waiting for {self.minimum} x ({describe(self.bundle)}): {waited_s:.0f} s; {self.why()}")

    # Workers of a worker group

    def take_actors(self) -> list[tuple[Seat, Any]]:
        """A worker on each seat that is placed, with what it answers to `get_metadata`; by rank.

        At the first call they are those made ahead of time, else new ones.

        If a node dies meanwhile, this waits for another and makes the workers anew. It often does: the other
        ranks hear at once of a host that is gone, Ray only 3 to 20 s later.

        Raises:
            TrainingError: workers ended while they started, several times, and no node was lost; or a worker
                cannot be made: its constructor raised.
            Suspended: all seats are to be given back.
        """
        is_made, self._has_made_ahead = self._has_made_ahead, False
        if not is_made:
            self._end_workers()
        num_left = MAX_DEATHS_AT_START
        while True:
            present = _live_nodes()
            if not is_made:
                self._spawn_all()
            made = [seat for seat in list(self.seats) if seat.actor is not None]
            try:
                asked = [seat.actor.get_metadata.remote() for seat in made]
                metadata = ray.get(asked, timeout=START_LIMIT_S) if made else []
                if taken := self._take(made, metadata):
                    return taken
            except (RayActorError, GetTimeoutError) as error:
                if all(seat.actor is not None for seat in made):  # else it was given back meanwhile
                    self._end_workers()
                    num_left -= self._judge(error, present, num_left)
            is_made = sum(seat.actor is not None for seat in made) >= self.minimum
            if not is_made:
                self.await_seats()

    def _take(self, made: list[Seat], metadata: list[Any]) -> list[tuple[Seat, Any]]:
        """From here on they count as training; none where too few are left."""
        with self._lock:
            taken = [(seat, facts) for seat, facts in zip(made, metadata, strict=True) if seat.actor]
            if len(taken) < self.minimum:
                return []
            for rank, (seat, _) in enumerate(taken):
                seat.rank = rank
            return taken

    def _judge(self, error: RayActorError | GetTimeoutError, present: set[str], num_left: int) -> int:
        """What the end of a worker that was starting costs of `num_left`. Raises: TrainingError."""
        if isinstance(error, RayActorError) and error.actor_init_failed:
            raise TrainingError(f"a worker cannot start: {last_line(error)}") from error
        is_node_lost = not present <= _live_nodes()
        if num_left == 1 and not is_node_lost:
            raise TrainingError(
                f"workers ended while they started, {MAX_DEATHS_AT_START} times: {last_line(error)}"
            ) from error
        what = "its node was lost" if is_node_lost else "its process ended"
        what = f"it was not up within {START_LIMIT_S:.0f} s" if isinstance(error, GetTimeoutError) else what
        self._say(f"a worker was lost while it started ({what}); starting the workers again")
        return int(not is_node_lost)

    def await_seats(self) -> None:
        """Block until enough seats are placed, and say so while it lasts. Raises: Suspended."""
        self._await_seats(self.tell)

    def vacant(self, count: int) -> list[Seat]:
        """Up to so many seats that are placed and have no worker; asks for more where they are too few.

        Those of a claim are not asked for here. For one thread at a time.
        """
        with self._lock:
            free = [seat for seat in self.seats if seat.actor is None]
        if not self._is_fixed and self.claim is None:
            for _ in range(count - len(free)):
                self._add(self._own_seat())
        return [seat for seat in free if seat.is_placed][:count]

    def spawn(self, seat: Seat) -> Any:
        """Make a worker on the seat; None where that has been given back meanwhile."""
        with self._lock:
            if seat in self.seats:
                seat.actor = create_actor(seat, self.bundle)
            return seat.actor

    def close(self, seat: Seat) -> None:
        """End the seat's worker. The seat is given back, if that is possible alone, unless it is allotted.

        Returns at once: a thread tells Ray, for whoever closes a seat holds a lock that all workers wait for.
        """
        with self._lock:
            left = self._leave(seat)
            thread = threading.Thread(target=self._let_go_in_time, args=left, daemon=True)
            self._closing = [*(one for one in self._closing if one.is_alive()), thread]
            thread.start()

    def _leave(self, seat: Seat) -> tuple[Seat, Any, bool]:
        """Know no more of the seat's worker, nor of the seat if it is given back; Ray has to be told yet.

        With the lock; returns what `_let_go` takes.
        """
        actor, seat.actor, seat.rank = seat.actor, None, None
        may_go = seat.is_leaving or (seat.is_own and self.claim is None)
        is_given_back = may_go and seat in self.seats
        if is_given_back:
            self.seats = [other for other in self.seats if other is not seat]
        return seat, actor, is_given_back

    def _let_go(self, seat: Seat, actor: Any, is_given_back: bool) -> None:
        """End a worker that was on a seat, and give that back; without the lock."""
        try:
            _kill(actor)
        finally:
            if is_given_back:
                remove_placement_group(seat.group)
        if is_given_back and seat.is_leaving:
            self.gave_back(seat)

    def _let_go_in_time(self, seat: Seat, actor: Any, is_given_back: bool) -> None:
        """The same in a thread, where only the run's log can hear of a failure."""
        try:
            self._let_go(seat, actor, is_given_back)
        except Exception as error:
            self._say(f"a worker's seat could not be given back ({last_line(error)})")

    def disband(self) -> None:
        """Nobody trains any more: what is leaving is given back."""
        with self._lock:
            for seat in self.seats:
                seat.rank = None
            left = [self._leave(seat) for seat in self.seats if seat.is_leaving]
        for one in left:
            self._let_go(*one)

    def release(self) -> None:
        """End the workers that are left, and give the resources back; returns when all are."""
        self._is_released = True
        for thread in self._closing:
            thread.join()
        # A worker that still imports when its group is removed ends in a page of C++ frames (Ray 2.60).
        self._end_workers()
        with self._lock:
            groups = {seat.group.id: seat.group for seat in self.seats}
            self.seats = []
        for group in groups.values():
            remove_placement_group(group)

    def _end_workers(self) -> None:
        """End those that were made last: Ray forgets a worker group whose start failed, and ends nobody."""
        for seat in list(self.seats):
            actor, seat.actor, seat.rank = seat.actor, None, None
            _kill(actor)
        self.disband()


def _kill(actor: Any) -> None:
    if actor is not None:
        ray.kill(actor)


def _live_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def last_line(error: Exception) -> str:
    """The cause in Ray's long texts; ids and addresses stand before it."""
    return (str(error).strip().splitlines() or ["no message"])[-1].strip()


def describe(bundle: Mapping[str, float]) -> str:
    """For instance "1 CPU + 1 GPU"."""
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()))
