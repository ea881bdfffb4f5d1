"""Who trains with whom: the driver's side of a run's formations.

Ray Train starts the workers and watches whether their train functions run; which of them form a group, and
what happens when one is lost or another size is wanted, is decided here, in a thread of its own. Survivors
keep their process, their model and their seat. Where this cannot help (nobody is left, losses come time after
time without a step in between, or the train function raised), Ray Train's controller hears of it and starts
all workers again from the newest checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.execution.worker_group.worker import Worker

from eagleray.errors import PeerLost
from eagleray.training.ending_ray260 import end_process
from eagleray.training.observer import Change, WorkerInfo
from eagleray.training.reservation_ray260 import Reservation, Seat, last_line
from eagleray.training.station import STEP, Formation, News

TICK_S = 0.05
FORM_LIMIT_S = 20.0
"""For a formation to get from the order to its first step."""
WAKE_EVERY_S = 0.5
REGROUP_LIMIT_S = 10.0
"""For a rank to give up a broken formation."""
GROW_AFTER_S = 1.0
"""A formation lasts at least so long before others join it: they may come together."""
SLOW_FACTOR = 5.0
"""A rank hangs when it takes so many times its longest step."""

Phase = Literal["forming", "training", "yielding", "regrouping", "over"]


@dataclass(eq=False)
class Member:
    """A worker of the run, in the formation or on its way into it."""

    worker: Worker
    seat: Seat
    rank: int | None = None
    """In the formation; None: it has not been in one."""
    is_ready: bool = False
    """It waits for an order."""
    address: str = ""
    has_begun: bool = False
    """It trains in the current formation."""
    is_over: bool = False
    news: News | None = None
    pending: Any = None
    asked_at: float = field(default_factory=time.monotonic)

    def info(self, rank: int) -> WorkerInfo:
        """For the observer."""
        facts = self.worker.metadata
        return WorkerInfo(rank=rank, node_id=facts.node_id, pid=facts.pid, node_ip=facts.node_ip)


class Membership:
    """See the module. `lock` guards everything that both threads see."""

    def __init__(
        self,
        reservation: Reservation,
        *,
        first_attempt: int,
        minimum: int,
        wanted: int,
        heartbeat_s: float,
        max_failures: int,
        tell: Callable[[Change], None],
        say: Callable[[str], None],
    ):
        self.lock = threading.RLock()
        self.members: list[Member] = []
        """Of the formation, by rank; what Ray Train polls."""
        self.failure: PeerLost | None = None
        """Why Ray Train has to start the workers again."""
        self._reservation, self._tell, self._say = reservation, tell, say
        self._next_attempt, self._minimum, self._wanted = first_attempt, minimum, wanted
        self._heartbeat_s, self._max_failures = heartbeat_s, max_failures
        self._joining: list[Member] = []
        self._starting: set[Seat] = set()
        """With workers that are not up yet."""
        self._phase: Phase = "over"
        self._since = time.monotonic()
        self._lost: dict[int, tuple[WorkerInfo, str]] = {}
        """By rank, of the formation that is left: who was lost, and why."""
        self._num_before = 0
        self._left_at: float | None = None
        """When the formation was asked to stop, or given up, seconds since the epoch."""
        self._num_failures = 0
        """Losses without a step in between."""
        self._failed_step = -1
        self._notice = 0
        self._woken_at = 0.0
        self._thread: threading.Thread | None = None
        self._launch: Callable[[Worker], None] = lambda worker: None

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
            self.failure, self._launch, self._num_before, self._left_at = None, launch, 0, None
            self._lost.clear()
            self._enter("regrouping")
        self._thread = threading.Thread(target=self._run, name="eagleray-membership", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop deciding; workers that are on their way in are ended."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self.lock:
            for seat in [*(member.seat for member in self._joining), *self._starting]:
                self._reservation.close(seat)
            self._joining.clear()
            self._starting.clear()
            self._enter("over")

    def resize(self, wanted: int) -> None:
        """Ask for another number of workers; it comes about when all have agreed on a step."""
        with self.lock:
            self._wanted = max(self._minimum, wanted)

    # The thread

    def _run(self) -> None:
        while self._thread is threading.current_thread():
            with self.lock:
                everyone = [*self.members, *self._joining]
                for member in everyone:
                    if member.pending is None:
                        member.pending, member.asked_at = member.worker.actor.news.remote(), time.monotonic()
            pending = {member.pending: member for member in everyone}
            if not pending:
                time.sleep(TICK_S)
            else:
                ray.wait(list(pending), timeout=TICK_S)
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0) if pending else ([], [])
            with self.lock:
                for reference in done:
                    self._hear(pending[reference], reference)
                if self.failure is None and not any(member.is_over for member in self.members):
                    self._find_silent()
                    self._advance()

    def _hear(self, member: Member, reference: Any) -> None:
        """Take a worker's news, or its death."""
        member.pending = None
        try:
            news: News = ray.get(reference)
        except RayActorError as error:
            self._lose(member, "its process ended" if "died" in str(error) else last_line(error))
            return
        except RayError as error:
            self._lose(member, last_line(error))
            return
        member.news, lost = news, None
        for event in news.events:
            if event.kind == "waiting":
                member.is_ready, member.address, member.has_begun = True, event.text, False
            elif event.kind == "training":
                member.has_begun = True
            elif event.kind == "over":
                member.is_over = True
            elif event.kind == "lost":
                lost = event.text
        if lost is not None:
            self._break(lost)

    def _lose(self, member: Member, reason: str) -> None:
        """A worker is gone, or is given up."""
        if member in self._joining:
            self._joining.remove(member)
            self._reservation.close(member.seat)
            return
        if member not in self.members:
            return
        self.members.remove(member)
        if member.rank is not None:
            self._lost[member.rank] = (member.info(member.rank), reason)
        self._reservation.close(member.seat)
        if len(self.members) < self._minimum:
            self._say(
                f"a worker was lost ({reason}): {len(self.members)} of {self._minimum} are left, and wait "
                "with their state for another"
            )
        self._break(reason)

    def _break(self, reason: str) -> None:
        """Wake everybody out of a formation that cannot go on."""
        if self._phase in ("regrouping", "over"):
            return
        self._left_at = time.time()
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
        now = time.monotonic()
        for member in list(self.members):
            silent_s = now - member.asked_at if member.pending is not None else 0.0
            if silent_s > self._heartbeat_s:
                self._give_up(member, f"it has not answered for {silent_s:.1f} s")
            elif self._phase == "regrouping" and not member.is_ready and now - self._since > REGROUP_LIMIT_S:
                self._give_up(member, "it does not come out of the formation that was left")
            elif self._phase in ("training", "yielding") and self._hangs(member):
                assert member.news is not None
                self._give_up(member, f"it has hung for {member.news.idle_s:.1f} s")
        if self._phase == "forming" and now - self._since > FORM_LIMIT_S:
            self._break("the ranks did not meet")

    def _hangs(self, member: Member) -> bool:
        news = member.news
        if news is None or news.is_waiting or member.is_ready or news.doing not in (STEP, "wait for data"):
            return False
        return news.step_s > 0 and news.idle_s > max(self._heartbeat_s, SLOW_FACTOR * news.step_s)

    def _give_up(self, member: Member, reason: str) -> None:
        doing = (
            ""
            if member.news is None
            else f"; the last thing it did: step {member.news.step}, {member.news.doing}"
        )
        facts = member.worker.metadata
        self._lose(member, f"{reason}{doing}")
        end_process(member.worker.actor, facts.node_id, facts.pid)

    def _advance(self) -> None:
        if self._phase == "forming" and all(member.has_begun for member in self.members):
            self._enter("training")
        elif self._phase in ("regrouping", "yielding"):
            if self._phase == "regrouping" and time.monotonic() - self._woken_at > WAKE_EVERY_S:
                self._wake()
            if self.members and all(member.is_ready for member in self.members):
                self._regroup()
            elif not self.members:
                self.failure = PeerLost(
                    f"all workers were lost: {'; '.join(r for _, r in self._lost.values())}"
                )
        elif self._phase == "training":
            self._consider_change()
        self._fetch()

    def _consider_change(self) -> None:
        """Ask the formation to stop at a step, if others are ready to join it or fewer are wanted."""
        step = max((member.news.step for member in self.members if member.news), default=0)
        if step > self._failed_step:
            self._num_failures = 0
        lasted_s = time.monotonic() - self._since
        can_grow = (
            lasted_s > GROW_AFTER_S
            and len(self.members) < self._wanted
            and any(member.is_ready for member in self._joining)
        )
        if can_grow or len(self.members) > self._wanted:
            self._notice += 1
            self._left_at = time.time()
            self._enter("yielding")
            self.members[0].worker.actor.notice.remote(self._notice)

    def _regroup(self) -> None:
        """Everybody waits for an order: give it, if there are enough."""
        if self._lost and self._num_failures >= self._max_failures:
            self.failure = PeerLost(
                f"{self._num_failures + 1} losses without a step in between; "
                + "; ".join(reason for _, reason in self._lost.values())
            )
            return
        ready = [member for member in self._joining if member.is_ready]
        stay = self.members[: self._wanted]
        come = ready[: self._wanted - len(stay)]
        if len(stay) + len(come) < self._minimum:
            return  # `_fetch` gets more
        for member in self.members[self._wanted :]:
            self._reservation.close(member.seat)
        num_before = self._num_before
        if self._lost:
            self._num_failures += 1
            self._failed_step = max((member.news.step for member in stay if member.news), default=0)
        self._joining = [member for member in self._joining if member not in come]
        self.members = [*stay, *come]
        number, self._next_attempt = self._next_attempt, self._next_attempt + 1
        num_lost, self._num_before = len(self._lost), len(self.members)
        for rank, member in enumerate(self.members):
            member.rank, member.is_ready, member.has_begun = rank, False, False
            formation = Formation(
                number, rank, len(self.members), self.members[0].address, num_before, num_lost
            )
            member.worker.actor.form.remote(formation)
        workers = [member.info(rank) for rank, member in enumerate(self.members)]
        self._tell(Change(number, workers, num_before, dict(self._lost), time.time(), self._left_at))
        self._lost.clear()
        self._left_at = None
        self._enter("forming")

    def _fetch(self) -> None:
        """Get as many workers as are wanted: their seats, then their processes, then their readiness."""
        missing = self._wanted - len(self.members) - len(self._joining) - len(self._starting)
        is_busy = self._phase == "forming" or (
            self._phase == "regrouping" and len(self.members) >= self._minimum
        )
        if missing <= 0 or is_busy:
            return
        for seat in self._reservation.vacant(missing):
            actor = self._reservation.spawn(seat)
            self._starting.add(seat)
            threading.Thread(target=self._admit, args=(seat, actor), daemon=True).start()

    def _admit(self, seat: Seat, actor: Any) -> None:
        """Wait until a new worker is up, and start its train function."""
        member = None
        try:
            metadata: Any = ray.get(actor.get_metadata.remote())
            bundle = self._reservation.bundle
            member = Member(Worker(actor, metadata, bundle, placement_group_bundle_index=seat.index), seat)
            self._launch(member.worker)
        except RayError:
            member = None  # its process or its node ended: another is fetched
        with self.lock:
            self._starting.discard(seat)
            if member is None or self._thread is None:
                self._reservation.close(seat)
            else:
                self._joining.append(member)

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, time.monotonic()
