"""Who trains with whom: the driver's side of a run's formations.

Ray Train starts the workers and watches whether their train functions run; which of them form a group, and
what happens when one is lost, another size is wanted or seats have to be given back, is decided here, in a
thread of its own. Survivors keep their process, their model and their seat. Where this cannot help (nobody is
left, losses come time after time without a step in between, or the train function raised), Ray Train's
controller hears of it and starts all workers again from the newest checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.errors import PeerLost
from eagleray.training import giving_up_ray260 as giving_up
from eagleray.training import leaving
from eagleray.training.formations_ray260 import Formations
from eagleray.training.joiners_ray260 import Joiners
from eagleray.training.listening_ray260 import TICK_S, Ear
from eagleray.training.member_ray260 import Member
from eagleray.training.observer import Change
from eagleray.training.patience import Patience
from eagleray.training.reservation_ray260 import Reservation
from eagleray.training.seat_ray260 import Seat
from eagleray.training.station import News
from eagleray.training.stopping import Restarting, Suspended
from eagleray.training.telemetry import Record

WAKE_EVERY_S = 0.5
GROW_AFTER_S = 1.0
"""A formation lasts at least so long before others join it: they may come together."""

Phase = Literal["forming", "training", "yielding", "regrouping", "over"]


class Membership:
    """See the module. `lock` guards everything that both threads see."""

    def __init__(
        self,
        reservation: Reservation,
        *,
        first_attempt: int,
        minimum: int,
        wanted: int,
        spares: int = 0,
        restarts: bool = False,
        heartbeat_s: float,
        max_failures: int,
        tell: Callable[[Change | Record], None],
        note: Callable[[int, int], None] = lambda number, size: None,
        part: Callable[[Worker], None] = lambda worker: None,
    ):
        """Decide over the workers on the seats of `reservation`, once there are some (`begin`).

        Args:
            reservation: the run's seats.
            first_attempt: number of the first formation.
            minimum: workers that the run can train with.
            wanted: workers that train.
            spares: workers that are ready beside them.
            restarts: each change of size, and each loss, has Ray Train start all workers anew.
            heartbeat_s: how long a rank may be silent, seconds.
            max_failures: formations broken without a step in between that are got over.
            tell: hears of each change of the workers, and of what the run is to be told (records).
            note: keeps number and size of a formation that is about to be ordered; must not block for long.
            part: called before a worker is ended that has told what nobody else tells.
        """
        self.lock = threading.RLock()
        self.members: list[Member] = []
        """Of the formation, by rank; what Ray Train polls."""
        self.failure: PeerLost | Suspended | Restarting | None = None
        """Why Ray Train has to start the workers again, or the run has to stop for now."""
        self.restarts = restarts
        self._reservation, self._tell, self._part = reservation, tell, part
        self._formations = Formations(first_attempt, tell, note)
        self._minimum, self._wanted, self._num_spares = minimum, wanted, spares
        self._heartbeat_s, self._patience = heartbeat_s, Patience(max_failures)
        self._joiners, self._ear = Joiners(reservation, self.lock, self._say), Ear()
        self._phase: Phase = "over"
        self._since = time.monotonic()
        self._notice = 0
        self._woken_at = 0.0
        self._thread: threading.Thread | None = None

    # Called by Ray Train's controller

    def begin(
        self, workers: Sequence[Worker], seats: Sequence[Seat], launch: Callable[[Worker], None]
    ) -> None:
        """Take over workers whose train functions have just been started.

        Args:
            workers: of Ray Train's new group.
            seats: of each.
            launch: gives a worker that comes later its context, and starts its train function.
        """
        with self.lock:
            self.members = [
                Member(worker, seat, rank=rank)
                for rank, (worker, seat) in enumerate(zip(workers, seats, strict=True))
            ]
            self.failure, self._ear = None, Ear()
            self._formations.begin()
            self._patience.begin()
            self._joiners.open(launch)
            self._enter("regrouping")
        self._thread = threading.Thread(target=self._run, name="eagleray-membership", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop deciding; workers that are on their way in are ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self.lock:
            self._joiners.close()
            self._enter("over")
        self._reservation.disband()

    def resize(self, wanted: int) -> None:
        """Ask for another number of workers; it comes about when all have agreed on a step."""
        with self.lock:
            self._wanted = max(self._minimum, wanted)

    # The thread

    def _run(self) -> None:
        while self._thread is threading.current_thread():
            try:
                self._turn()
            except Exception as error:  # without this thread the run would hang: let Ray Train begin again
                with self.lock:
                    self.failure = self.failure or PeerLost(f"the workers cannot be watched: {error!r}")
                time.sleep(TICK_S)

    def _turn(self) -> None:
        """Ask all workers, hear those that answer, and decide."""
        with self.lock:
            everyone = [*self.members, *self._joiners.members]
        answers = self._ear.hear(everyone)
        with self.lock:
            for member, answer in answers:
                self._hear(member, answer)
            now, deaf_s = time.monotonic(), self._ear.was_deaf_s(everyone)
            self._since, self._woken_at = (min(now, at + deaf_s) for at in (self._since, self._woken_at))
            self._decide()
        if 0 < len(self.members) < self._minimum:  # without the lock: it may ask the ledger why
            self._reservation.tell(time.monotonic() - self._since)

    def _decide(self) -> None:
        if self.failure is not None:
            return
        if self._is_ending:
            self._see_the_end()
        else:
            self._find_silent()
            self._advance()

    @property
    def _is_ending(self) -> bool:
        """Some have returned from their train functions: no order can come any more."""
        return any(member.is_over for member in self.members)

    def _see_the_end(self) -> None:
        """All others return, too, or all workers start again, from a checkpoint after which no step is left.

        Where one has raised, Ray Train hears why.
        """
        if self._phase == "over" or any(member.has_failed for member in self.members):
            return
        for member, reason in giving_up.silent(self.members, self._heartbeat_s):
            self._give_up(member, reason)
        if self._formations.lost or any(member.is_ready for member in self.members):
            why = self._formations.reasons or self._patience.broken
            self.failure = PeerLost(f"a worker was lost as the run ended: {why}")

    def _hear(self, member: Member, answer: News | str) -> None:
        """Take a worker's news, or why there will be none."""
        if isinstance(answer, str):
            self._lose(member, answer)
        elif (lost := member.take(answer)) is not None:
            self._break(lost)

    def _lose(self, member: Member, reason: str) -> None:
        """A worker is gone, or is given up."""
        if member in self._joiners.members:
            self._joiners.lose(member, reason)
        if member not in self.members:
            return
        if self.restarts:  # Ray Train sees it, too, and starts all of them
            self._wake()
            self._enter("over")
            return
        self.members.remove(member)
        if not (member.is_over and member.rank):  # what rank 0 returns is the run's outcome
            self._formations.lose(member, reason)
        self._patience.lost()
        if len(self.members) < self._minimum and not self._is_ending:
            self._say(
                f"a worker was lost ({reason}): {len(self.members)} of {self._minimum} are left, and wait "
                "with their state for another"
            )
        self._break(reason)
        self._reservation.close(member.seat)

    def _break(self, reason: str) -> None:
        """Wake everybody out of a formation that cannot go on."""
        if self._phase != "over":
            self._patience.broke(reason)
        if self._phase in ("regrouping", "over"):
            return
        self._formations.leave()
        self._enter("regrouping")
        self._wake()

    def _wake(self) -> None:
        """Break the groups of those that have not come out yet: some may just have been about to join."""
        self._woken_at = time.monotonic()
        for member in self.members:
            if not member.is_ready:
                member.worker.actor.break_groups.remote()

    def _find_silent(self) -> None:
        """Give up workers that do not answer, or that hang while the others wait for them."""
        if self._phase == "over":
            return
        for member, reason in self._joiners.hopeless(self._heartbeat_s):
            self._give_up(member, reason)
        trains, lasted_s = self._phase in ("training", "yielding"), time.monotonic() - self._since
        is_asked = self._phase == "regrouping" and not self._formations.is_nothing_held
        found = giving_up.hopeless(
            self.members,
            self._heartbeat_s,
            self._patience,
            trains=trains,
            asked_s=lasted_s if is_asked else None,
        )
        for member, reason in found:
            self._give_up(member, reason)
        if self._phase == "forming" and lasted_s > self._patience.form_limit_s:
            reason = f"the ranks did not meet in {lasted_s:.0f} s"
            self._patience.did_not_meet(reason)
            self._break(reason)
        elif trains and not found and giving_up.wait_for_each_other(self.members, self._heartbeat_s):
            self._break("all ranks wait for each other")

    def _give_up(self, member: Member, reason: str) -> None:
        self._lose(member, f"{reason}{member.last_deed}")
        member.end()

    def _advance(self) -> None:
        if self._phase == "over":
            return
        if self._phase == "forming" and all(member.has_begun for member in self.members):
            self._patience.began()
            self._enter("training")
        elif self._phase in ("regrouping", "yielding"):
            if self._phase == "regrouping" and time.monotonic() - self._woken_at > WAKE_EVERY_S:
                self._wake()
            if self.members and all(member.is_ready for member in self.members):
                self._regroup()
            elif self._reservation.is_suspended and self._formations.is_nothing_held:
                self._suspend()
            elif not self.members:
                self.failure = PeerLost(f"all workers were lost: {self._formations.reasons}")
        elif self._phase == "training":
            self._consider_change()
        if self.failure is None:
            self._force_out()
            self._fetch()

    def _consider_change(self) -> None:
        """Ask the formation to stop at a step, if some have to leave, or others are ready to join it."""
        self._patience.stepped(max((member.step for member in self.members), default=0))
        reservation, num = self._reservation, len(self.members)
        num_leaving = sum(member.seat.is_leaving for member in self.members)
        num_ready = len(self._joiners.ready)
        num_left = num - num_leaving + num_ready
        can_leave = num_left >= self._minimum or self._is_late() or self.restarts
        can_grow = (
            num < self._wanted
            and time.monotonic() - self._since > GROW_AFTER_S
            and (num_ready > 0 or (self.restarts and bool(reservation.vacant(self._wanted - num))))
        )
        if num_leaving and (can_leave or reservation.is_suspended):
            why = reservation.reason or "their seats are gone"
            self._say(f"giving {num_leaving} of {num} workers back: {why}")
        elif num_leaving:
            return  # too few would be left: they train on while they may
        elif not can_grow and num <= self._wanted:
            return
        self._notice += 1
        self._formations.leave()
        self._enter("yielding")
        self.members[0].worker.actor.notice.remote(self._notice)

    def _regroup(self) -> None:
        """Everybody waits for an order: give it, if there are enough."""
        broken = self._patience.broken
        if self._patience.is_spent:
            self.failure = PeerLost(f"{self._patience.verdict}; {self._formations.reasons or broken}")
            return
        is_kept = self._phase == "yielding" or self._formations.is_nothing_held
        if is_kept and self._reservation.is_suspended:
            self._suspend()
            return
        # What they hold after a loss is in no checkpoint: who has to leave stays until it is.
        stay = [member for member in self.members if not (is_kept and member.seat.is_leaving)]
        stay = stay[: self._wanted]
        come = self._joiners.ready[: self._wanted - len(stay)]
        leave = [member for member in self.members if member not in stay]
        if self.restarts and not self._formations.is_nothing_held and not self._patience.is_unmet:
            self._let_go(leave)
            self.failure = Restarting() if broken is None else PeerLost(broken)  # which Ray Train counts
            return
        if len(stay) + len(come) < (1 if self._reservation.is_suspended else self._minimum):
            if leave and self._is_late():
                self._let_go(leave)
            if not self.members:
                self._suspend()  # until there are seats for enough of them
            return  # `_fetch` gets more
        self._let_go(leave)
        self._form([*stay, *come])

    def _let_go(self, leave: Sequence[Member]) -> None:
        """End those; what they hold is in the checkpoint, or held by others."""
        if self.members and self.members[0] in leave:
            self._part(self.members[0].worker)
        for member in leave:
            self.members.remove(member)
            self._reservation.close(member.seat)

    def _form(self, members: list[Member]) -> None:
        """Order these into a formation."""
        if self._patience.broken is not None and not self._formations.lost:  # whose reasons the change tells
            self._say(f"the workers form anew: {self._patience.broken}")
        self._patience.ordered(max(member.step for member in members))
        self._joiners.leave(members)
        self.members = members
        self._formations.order(members)
        self._enter("forming")

    # Seats that are to be given back

    def _is_late(self) -> bool:
        """Whether what has to be given back is due soon."""
        step_s = max((member.step_s for member in self.members), default=0.0)
        return leaving.is_late(self._reservation.leave_by, step_s)

    def _force_out(self) -> None:
        """End who has not left in time; what the others hold goes on."""
        if not leaving.is_over(self._reservation.leave_by):
            return
        if self._reservation.is_suspended:
            self._suspend(is_forced=True)
            return
        for member in [member for member in self.members if member.seat.is_leaving]:
            self._give_up(member, f"it had not left its node in time ({self._reservation.reason})")

    def _suspend(self, *, is_forced: bool = False) -> None:
        """End all workers; the run goes on when it has seats again.

        They do not return from their train functions: until Ray Train had seen that, the seats would be held.
        """
        step = max((member.step for member in self.members), default=0)
        reason, num = self._reservation.reason, len(self.members)
        self.failure = Suspended(reason, step, num_workers=num, is_forced=is_forced)
        if self.members:
            self._part(self.members[0].worker)
        for member in self.members if is_forced else []:
            member.end()
        self._joiners.close()
        for member in self.members:
            self._reservation.close(member.seat)
        self.members = []

    def _fetch(self) -> None:
        """Get as many workers as are wanted."""
        num_here = sum(not member.seat.is_leaving for member in self.members)
        missing = self._wanted + self._num_spares - num_here - len(self._joiners)
        is_busy = self._phase == "forming" or (
            self._phase == "regrouping" and len(self.members) >= self._minimum
        )
        if missing > 0 and not is_busy and not self.restarts:
            self._joiners.fetch(missing)

    def _say(self, text: str) -> None:
        self._tell({"kind": "note", "time": time.time(), "text": text})

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, time.monotonic()
