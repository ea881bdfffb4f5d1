"""A run's seats: under a claim of the ledger where the cluster has one, else wherever Ray finds room.

What the ledger allots becomes seats (`Reservation.allot`); what has been given back, what runs, and what the
choice of a victim goes by is stated to it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from eagleray.capacity import Allotment, ClaimClient, Facts, Request
from eagleray.cluster.holding import Holding
from eagleray.specs import TrainSpec
from eagleray.training.observer import Change, Observer
from eagleray.training.reservation_ray260 import Reservation
from eagleray.training.seat_ray260 import Seat
from eagleray.training.telemetry import Record
from eagleray.workflows.queueing import reason_of

TELL_EVERY_S = 0.2
_logger = logging.getLogger(__name__)


class Ledger(ClaimClient, Protocol):
    """A `ClaimClient` that can be asked who waits for what."""

    def report(self) -> Mapping[str, Any] | None:
        """See `cluster.ledger_client.LedgerClient`."""
        ...


class Seats:
    """Where a run's workers go."""

    def __init__(self, spec: TrainSpec, bundle: Mapping[str, float]):
        self._scaling, self._bundle = spec.scaling, dict(bundle)

    def reserve(self) -> Reservation:
        """Seats for a start of the workers; one at a time."""
        return self._reservation(None)

    def watching(self, observer: Observer) -> Observer:
        """`observer`, or one that hears the same and hands it on."""
        return observer

    def _reservation(self, claim: str | None) -> Reservation:
        scaling = self._scaling
        return Reservation(
            self._bundle,
            scaling.num_workers,
            scaling.label_selector,
            scaling.minimum,
            spares=scaling.spares,
            claim=claim,
        )


class ClaimedSeats(Seats):
    """Seats under a claim; `close` gives all of them back."""

    def __init__(self, run_id: str, spec: TrainSpec, bundle: Mapping[str, float], ledger: Ledger):
        super().__init__(spec, bundle)
        scaling = spec.scaling
        self._claim, self._ledger = run_id, ledger
        self._facts = RunFacts()
        self._lock = threading.RLock()
        """Held while what was allotted is carried to the seats."""
        self._current: Reservation | None = None
        self._is_allotted = True
        """Whether that has worked out; else it is tried again."""
        request = Request.run(
            run_id,
            f"run {run_id}",
            bundle,
            minimum=scaling.minimum,
            wanted=scaling.num_workers + scaling.spares,
            budget=scaling.budget,
            label_selector=scaling.label_selector,
            yield_s=scaling.yield_s,
        )
        with self._lock:  # it may hear at once
            self._holding = Holding(ledger, request, heard=self._hear)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._tell_always, name="eagleray-claim", daemon=True)
        self._thread.start()

    def reserve(self) -> Reservation:
        """Seats on the nodes that were allotted, now and later. An earlier reservation has been released."""
        reservation = self._reservation(self._claim)
        reservation.gave_back, reservation.check = self._give_back, self._check
        reservation.why = self._why
        with self._lock:
            self._give_back_unseated()
            self._current = reservation
            self._allot()
        return reservation

    def watching(self, observer: Observer) -> Observer:
        """One that also learns what is lost when workers are taken from this run."""
        self._facts.observer = observer
        return self._facts

    def close(self) -> None:
        """Give everything back for good; the seats have been released."""
        self._is_over.set()
        self._thread.join()
        self._holding.close()

    def _hear(self, _: Allotment) -> None:
        with self._lock:
            self._allot()

    def _allot(self) -> None:
        """Have the seats that were allotted, but not what is on its way back to the ledger."""
        self._is_allotted = False
        self._carry()
        self._is_allotted = True

    def _carry(self) -> None:
        seats, allotment, held = self._current, self._holding.allotment, self._holding.held
        if seats is None:
            return
        units = {node: min(count, held.get(node, 0)) for node, count in allotment.units.items()}
        # Without any seats there is nothing to suspend: it just waits.
        is_suspension = allotment.is_suspension and bool(seats.seats)
        leave_by = self._holding.leave_by
        seats.allot(units, leave_by=leave_by, is_suspension=is_suspension, reason=allotment.reason)

    def _give_back(self, seat: Seat) -> None:
        assert seat.node is not None
        self._tell()  # first: what runs counts as held
        self._holding.give_back({seat.node: 1})

    def _tell_always(self) -> None:
        while not self._is_over.wait(TELL_EVERY_S):
            self._tell()
            self._give_back_unseated()
            self._allot_again()

    def _allot_again(self) -> None:
        if self._is_allotted or not self._lock.acquire(blocking=False):  # else: it is being tried
            return
        try:
            self._allot()
        except Exception:
            _logger.exception("what was allotted could not be carried to the seats; trying again")
        finally:
            self._lock.release()

    def _give_back_unseated(self) -> None:
        """Obey a notice while there are no seats: before the first reservation, and between two."""
        seats = self._current
        if (seats is None or not seats.seats) and (units := self._holding.asked_back):
            self._holding.give_back(units)

    def _tell(self) -> None:
        seats = self._current
        used = {} if seats is None else seats.used()
        self._holding.state(used=used, facts=self._facts.now())

    def _check(self) -> None:
        if self._holding.refusal is not None:
            raise self._holding.refusal

    def _why(self) -> str:
        """Why the run waits, as the ledger has it."""
        if self._holding.allotment.size >= self._scaling.minimum:
            return "it was granted them, and Ray has not placed them yet"
        return reason_of(self._ledger.report(), self._claim) or "the ledger has not decided yet"


class RunFacts:
    """An observer that hands on all it hears, and knows what a loss of workers would cost."""

    def __init__(self) -> None:
        self.observer: Observer | None = None
        self._committed_at: float | None = None
        self._step, self._total_steps = 0, 0
        self._left_at: float | None = None
        self._restart_cost_s = Facts().restart_cost_s

    def now(self) -> Facts:
        """As of now."""
        since_s = 0.0 if self._committed_at is None else max(0.0, time.time() - self._committed_at)
        progress = min(1.0, self._step / self._total_steps) if self._total_steps else 0.0
        return Facts(since_s, progress, self._restart_cost_s)

    def changed(self, change: Change) -> None:
        """See `Observer`."""
        self._left_at = change.left_at
        if self.observer is not None:
            self.observer.changed(change)

    def records(self, records: Sequence[Record]) -> None:
        """See `Observer`."""
        for record in records:
            self._take(record)
        if self.observer is not None:
            self.observer.records(records)

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """See `Observer`."""
        if self.observer is not None:
            self.observer.failed(failures, is_retried)

    def _take(self, record: Record) -> None:
        self._step = record.get("step", self._step)
        self._total_steps = record.get("total_steps", self._total_steps)
        if record["kind"] == "commit":
            self._committed_at = record["time"] - record["seconds"]
        elif record["kind"] == "phase":
            if self._left_at is None:
                self._committed_at = record["time"]  # they begin with what is in the checkpoint
            else:
                self._restart_cost_s = max(0.0, record["time"] - self._left_at)


@contextmanager
def seats(run_id: str, spec: TrainSpec, bundle: Mapping[str, float]) -> Iterator[Seats]:
    """The run's seats; at the end its claim, if it has one, is closed."""
    from eagleray.cluster.ledger_client import LedgerClient

    ledger = LedgerClient.find()
    if ledger is None:
        yield Seats(spec, bundle)
        return
    claimed = ClaimedSeats(run_id, spec, bundle, ledger)
    try:
        yield claimed
    finally:
        claimed.close()
