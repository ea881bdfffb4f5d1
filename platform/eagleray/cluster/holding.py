"""`Holding`: a claim as its holder has it. Threads of it talk with the ledger; it never blocks its user.

One thread states what the holder asks for and has, each second and when that changes; the other waits for
the next allotment, and passes on what either has heard: a holder that takes its time with that goes on being
stated. What was allotted counts as held until the holder gives it back: by `give_back`, or by
stating what it still holds. The ledger takes no notice of what is stated with an old version, since that
knows nothing of later grants; so what was given back is stated again until it has counted.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from types import MappingProxyType

from eagleray.capacity.claims import Facts, Request
from eagleray.capacity.client import Allotment, ClaimClient, Statement
from eagleray.capacity.decisions import Units
from eagleray.errors import CapacityError, InputError

_ANSWERED_S = 5.0
_CLOSE_S = 5.0
_AWAY_S = 0.2
"""Between two attempts to listen to a ledger that is away."""
_logger = logging.getLogger(__name__)


class Holding:
    """A claim of this process: a thread states what it asks for and has, each second and when that changes.

    Where the ledger is away, the last allotment goes on to hold, and a new ledger is told all of it. A
    process that ends without `close` loses the claim after its lease.
    """

    def __init__(
        self,
        client: ClaimClient,
        request: Request,
        *,
        used: Units = MappingProxyType({}),
        heard: Callable[[Allotment], None] = lambda _: None,
        every_s: float = 1.0,
    ) -> None:
        """Open the claim; returns at once.

        Args:
            client: The ledger; asked from threads of the Holding alone.
            request: What is asked for, to begin with.
            used: What runs already, where the holder was started again: what its first statement does not
                name would be taken for work without a claim.
            heard: Called for each new version in turn, after `allotment` is set, in the thread that listens.
                It may call any method but `wait`.
            every_s: Seconds between two statements where nothing changes.
        """
        self._client, self._heard, self._every_s = client, heard, every_s
        self._claim = request.claim
        self._request, self._used, self._facts = request, dict(used), Facts()
        self._allotment = Allotment()
        self._leave_by: float | None = None
        self._has_heard = False
        self._asked_s: float | None = None
        """Monotonic times: since when a ledger has known of the claim, and it has held nothing."""
        self._lacked_s = float("-inf")
        self._answered_s = float("-inf")
        self._refusal: InputError | CapacityError | None = None
        self._held: Counter[str] = Counter()
        """What the ledger counts as held, as far as is known here."""
        self._returned: Counter[str] = Counter()
        """Of it: given back, in no statement yet that has counted."""
        self._unpassed: deque[Allotment] = deque()
        """Heard, and to be passed on."""
        self._changed = threading.Condition()
        """Guards all of the above; notified when something is heard, and at the end."""
        self._has_news = threading.Event()
        """Set when there is something to state."""
        self._is_closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"claim {self._claim}: {name}", daemon=True)
            for name, target in (("states", self._state_always), ("listens", self._listen_always))
        ]
        for thread in self._threads:
            thread.start()
        # Before Ray's own, which was registered earlier: a call into a Ray that has ended ends the process.
        atexit.register(self.close)

    @property
    def allotment(self) -> Allotment:
        """The newest heard; version 0 before any."""
        with self._changed:
            return self._allotment

    @property
    def leave_by(self) -> float | None:
        """The allotment's deadline, `time.monotonic()`: `deadline_s` counts from the answer."""
        with self._changed:
            return self._leave_by

    @property
    def is_answered(self) -> bool:
        """Whether the ledger has answered in the last 5 s."""
        with self._changed:
            return time.monotonic() - self._answered_s < _ANSWERED_S

    @property
    def refusal(self) -> InputError | CapacityError | None:
        """Why the ledger does not take the claim as it is asked for; None where it does."""
        with self._changed:
            return self._refusal

    @property
    def held(self) -> Units:
        """What is stated to be held: what was allotted, less what was given back, by node."""
        with self._changed:
            return dict(self._held - self._returned)

    @property
    def asked_back(self) -> Units:
        """What a notice asks for and is still held, by node."""
        with self._changed:
            return dict(self._held - self._returned - Counter(self._allotment.units))

    def state(
        self,
        *,
        request: Request | None = None,
        held: Units | None = None,
        used: Units | None = None,
        facts: Facts | None = None,
    ) -> None:
        """Say what has changed; what is left out stays as it was. The ledger hears of a change at once.

        Args:
            request: Asked for from now on; of the same claim.
            held: Kept of what has been allotted up to now: what is missing is given back. What is allotted
                later comes on top of it. Where an allotment may come in between, `give_back` is exact.
            used: Of what is held: what runs. What runs elsewhere counts as held, too.
            facts: What the choice of a victim goes by. Stated with the next statement, not at once.
        """
        assert request is None or request.claim == self._claim, f"a request of another claim: {request}"
        with self._changed:
            before = (self._request, self._used, Counter(self._returned))
            self._request = request or self._request
            self._facts = facts or self._facts
            if used is not None:
                self._used = {node: units for node, units in used.items() if units > 0}
            if held is not None:
                self._returned = self._held - Counter(held)
            has_changed = before != (self._request, self._used, self._returned)
        if has_changed:
            self._has_news.set()

    def give_back(self, units: Units) -> None:
        """Give `units` of what was allotted back, by node; more than there are is the same as all of them."""
        with self._changed:
            self._returned = (self._returned + Counter(units)) & self._held
        self._has_news.set()

    def wait(
        self, is_enough: Callable[[Allotment], bool], timeout_s: float | None = None
    ) -> Allotment | None:
        """The allotment, once the ledger has answered and `is_enough` says so.

        None after `timeout_s`, or when the claim is closed.

        Raises:
            InputError: the ledger refused the claim.
            CapacityError: its minimum could never be placed.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._is_closing.is_set():
                if self._refusal is not None:
                    raise self._refusal
                if self._has_heard and is_enough(self._allotment):
                    return self._allotment
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                self._changed.wait(left_s)
        return None

    def close(self) -> None:
        """Give everything back for good, and end the threads.

        Returns after 5 s at the latest, also where the ledger does not answer. A second call does nothing. At
        the process's end it is called by itself.
        """
        atexit.unregister(self.close)
        self._is_closing.set()
        self._has_news.set()
        with self._changed:
            self._changed.notify_all()
        deadline_s = time.monotonic() + _CLOSE_S
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(max(0.0, deadline_s - time.monotonic()))

    # The thread that states.

    def _state_always(self) -> None:
        while not self._is_closing.is_set():
            self._has_news.clear()
            self._exchange()
            self._has_news.wait(self._every_s)
        # Only now: a statement under way would open the claim anew.
        try:
            self._client.close(self._claim)
        except Exception:  # the lease ends it
            _logger.exception("claim %s: the ledger has not heard that it is closed", self._claim)

    def _exchange(self) -> None:
        with self._changed:
            seen, returned = self._allotment.version, Counter(self._returned)
            held, now_s = dict(self._held - returned), time.monotonic()
            if held or self._asked_s is None:
                self._lacked_s = now_s
            statement = Statement(
                self._request,
                seen,
                held,
                self._used,
                self._facts,
                asked_s=0.0 if self._asked_s is None else now_s - self._asked_s,
                lacked_s=now_s - self._lacked_s,
            )
        try:
            answer = self._client.exchange(statement)
        except (InputError, CapacityError) as error:
            with self._changed:
                self._refusal, self._answered_s = error, time.monotonic()
                self._changed.notify_all()
            return
        except Exception:  # the claim must not be lost for a fault of one exchange
            _logger.exception("claim %s: could not be stated; trying again", self._claim)
            return
        if answer is not None:
            self._hear(answer, counted=returned if answer.version == seen else None)

    # The thread that listens.

    def _listen_always(self) -> None:
        while not self._is_closing.is_set():
            seen = self.allotment.version  # before: else what is heard between would wait
            self._pass_on()
            began_s, answer = time.monotonic(), None
            try:
                answer = self._client.wait(self._claim, seen, self._every_s)
            except Exception:  # the other thread hears the same a second later
                _logger.exception("claim %s: cannot listen to the ledger; trying again", self._claim)
            if answer is not None:
                self._hear(answer)
            elif time.monotonic() - began_s < min(_AWAY_S, self._every_s):
                self._is_closing.wait(_AWAY_S)

    def _hear(self, answer: Allotment, counted: Counter[str] | None = None) -> None:
        """Take an answer in; `counted`: given back in the statement that it answers, if that counted.

        Of one version only answers to statements are taken, which come in order: what differs between them is
        what was given back.
        """
        with self._changed:
            if self._is_closing.is_set():
                return
            self._answered_s = time.monotonic()
            self._asked_s = self._answered_s if self._asked_s is None else self._asked_s
            is_new = answer.version > self._allotment.version or not self._has_heard
            is_late = answer.version < self._allotment.version
            if counted is not None:
                self._returned -= counted
                if not is_late:  # else the newer allotment is without it
                    self._held -= counted
            if is_late or (not is_new and counted is None):
                return
            if is_new and answer.deadline_s is None:  # what is gone has ended: by force, or with its node
                gone = self._held - Counter(answer.units) - self._returned
                self._used = dict(Counter(self._used) - gone)
            # What a notice asks for is still held, and not in the allotment any more.
            leaving = self._held if answer.deadline_s is not None else Counter[str]()
            self._held = Counter(answer.units) | leaving
            self._returned &= self._held
            self._allotment, self._has_heard, self._refusal = answer, True, None
            left_s = answer.deadline_s
            self._leave_by = None if left_s is None else self._answered_s + left_s
            self._changed.notify_all()
            if is_new:
                self._unpassed.append(answer)

    def _pass_on(self) -> None:
        while self._unpassed and not self._is_closing.is_set():
            try:
                self._heard(self._unpassed.popleft())
            except Exception:
                _logger.exception("claim %s: what was heard could not be passed on", self._claim)
