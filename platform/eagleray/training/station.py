"""Where a rank's train function and the run's driver meet: orders come in, news go out.

One station for each worker process. The driver calls it through the worker's actor, in threads of its own, so
that it is heard while a step runs; the train function calls it between steps. Neither waits for the other but
where it says so.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NEWS_S = 0.25
"""How long the driver's question waits for news before it is answered without."""
STUCK_S = 1.0
"""Who does the same for so long says where in the code; the look costs it some microseconds."""
NUM_CALLS = 5
NUM_STEPS, NUM_BESIDE = 100, 10
"""As many of its last steps, and of its last evaluations and commits, tell how long a rank needs for one."""
STEP, UPDATE, DATA = "forward and backward", "update the weights", "wait for data"
"""What a rank does that steps, as it says it."""
BESIDE = EVALUATE, COMMIT, END = "evaluate", "commit a checkpoint", "measure the trained model"
"""What it does beside them, now and then, for a time of its own."""
JUDGED = (STEP, UPDATE, DATA, *BESIDE)
"""In which of all that it may do it can be told to hang."""


@dataclass(frozen=True)
class Formation:
    """Which ranks train together, from one change of them to the next; an order to one of them."""

    number: int
    """The attempt's: checkpoints of a lower one are refused from here on."""
    rank: int
    world_size: int
    address: str
    """`ip:port` where rank 0 will listen."""
    num_before: int
    """World size of the formation before; 0: this is the first one of the workers."""
    num_lost: int = 0
    """Ranks of the formation before that were lost, not asked to leave."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a rank."""

    kind: Literal["waiting", "lost", "yielded", "training", "over"]
    """waiting: ready for an order. lost: a peer of the formation stopped answering. yielded: stopped at a
    step that all agreed on, the state is committed. training: the formation's first step is about to be
    taken. over: the train function ends."""
    formation: int
    step: int
    time: float
    text: str = ""
    """waiting: an address that this rank could listen on. lost: why. over: the error, if it was one."""
    digest: str = ""
    """waiting: of the data that this rank has."""


@dataclass(frozen=True)
class News:
    """What a station says when it is asked."""

    events: tuple[Event, ...]
    step: int
    doing: str
    """What the rank did last, for the report of one that hangs."""
    idle_s: float
    """Since the rank has begun that, seconds."""
    is_waiting: bool
    """It waits for others (peers or the driver): if it hangs, they are the reason."""
    step_s: float
    """What 99 of 100 of its last steps in this formation took at most, without evaluations and commits
    between them, seconds; 0 where there is none."""
    usual_s: float
    """The same of what it does now: of a step, or the longest of the last evaluations or commits."""
    where: str = ""
    """In which calls its train function is, the innermost first; "" unless it does the same for a while."""


class Station:
    """See the module. Safe between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._order: Formation | None = None
        self._notice = 0
        self._events: list[Event] = []
        self._formation, self._thread = 0, threading.get_ident()
        self._doing, self._since, self._step, self._is_waiting = "start", time.monotonic(), 0, False
        self._steps: deque[float] = deque(maxlen=NUM_STEPS)
        """How long the last ones of this formation took, from one's begin to the next one's, seconds."""
        self._begun_at: float | None = None
        """When the newest step was begun."""
        self._beside = {doing: deque[float](maxlen=NUM_BESIDE) for doing in BESIDE}
        """How long the last ones of this formation took."""
        self._beside_s = 0.0
        """What of them came since the newest step was begun."""
        self.is_exchanging: Callable[[], bool] = bool
        """Whether the rank waits for the network at the moment, its engine or its train function."""

    # The driver's side

    def form(self, formation: Formation) -> None:
        """Order the rank into a formation; it goes when it is ready for it."""
        with self._changed:
            self._order = formation
            self._changed.notify_all()

    def notice(self, number: int) -> None:
        """Ask the formation to stop at the next step that all its ranks agree on; to rank 0."""
        self._notice = number

    def news(self, wait_s: float = NEWS_S) -> News:
        """The events since the last call; waits a little for one if there is none."""
        with self._changed:
            if not self._events:
                self._changed.wait(wait_s)
            events, self._events = tuple(self._events), []
            doing, step_s = self._doing, _most(self._steps)
            beside = self._beside.get(doing)
            usual_s = step_s if beside is None else max(beside, default=0.0)
            is_waiting = self._is_waiting or self.is_exchanging()
            idle_s = time.monotonic() - self._since
            where = calls_of(self._thread) if idle_s > STUCK_S else ""
            return News(events, self._step, doing, idle_s, is_waiting, step_s, usual_s, where)

    # The train function's side

    def begin(self) -> None:
        """Forget what an earlier train function of this process has left."""
        with self._changed:
            self._order, self._events, self._notice, self._formation = None, [], 0, 0
            self._thread = threading.get_ident()
            self._forget()

    def next_formation(self, address: str, step: int, digest: str = "") -> Formation:
        """Say that the rank is ready, and wait for the driver's order.

        Args:
            address: that this rank could listen on, `ip:port`.
            step: that it holds the state of.
            digest: of the data that it has.
        """
        self.at(step, "wait for the driver's order", is_waiting=True)
        with self._changed:
            self._forget()  # another size steps at another pace, and a pause between two is no step
            self._tell("waiting", address, digest)
            self._changed.wait_for(lambda: self._order is not None)
            order, self._order = self._order, None
            assert order is not None
            self._formation, self._notice = order.number, 0
            return order

    @property
    def wanted(self) -> int:
        """Number of the driver's last notice to this formation; 0: there is none."""
        return self._notice

    def at(self, step: int, doing: str, *, is_waiting: bool = False) -> None:
        """Say what the rank does now; cheap, for every part of every step."""
        now = time.monotonic()
        if (beside := self._beside.get(self._doing)) is not None:
            beside.append(now - self._since)
            self._beside_s += now - self._since
        self._step, self._doing, self._is_waiting, self._since = step, doing, is_waiting, now

    def begin_step(self, step: int) -> None:
        """The rank begins a step's forward and backward pass."""
        self.at(step, STEP)
        if self._begun_at is not None:
            self._steps.append(self._since - self._begun_at - self._beside_s)
        self._begun_at, self._beside_s = self._since, 0.0

    def _forget(self) -> None:
        """What comes now is to be measured anew."""
        self._steps.clear()
        for lasted in self._beside.values():
            lasted.clear()
        self._begun_at = None

    def tell(self, kind: Any, text: str = "") -> None:
        """Add an event of now."""
        with self._changed:
            self._tell(kind, text)

    def _tell(self, kind: Any, text: str, digest: str = "") -> None:
        self._events.append(Event(kind, self._formation, self._step, time.time(), text, digest))
        self._changed.notify_all()


def calls_of(thread: int) -> str:
    """The innermost calls of a thread, as `function (file:line)`; "" where it has ended."""
    frame = sys._current_frames().get(thread)
    walked = itertools.islice(traceback.walk_stack(frame), NUM_CALLS) if frame is not None else ()
    return " < ".join(
        f"{one.f_code.co_name} ({Path(one.f_code.co_filename).name}:{line})" for one, line in walked
    )


def _most(lasted: Collection[float]) -> float:
    """What 99 of 100 took at most; 0 where there is none."""
    return sorted(lasted)[math.ceil(0.99 * len(lasted)) - 1] if lasted else 0.0


STATION = Station()
"""This process's."""
