"""Where the trials of a search may run: wherever Ray finds room, or what the ledger allots on named nodes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from eagleray.capacity import Allotment, Facts, Request, Units
from eagleray.errors import EaglerayError

FORCE_S = 1.0
"""So long before a deadline whoever has not left is ended: the ledger would not know whom to end."""


class Claim(Protocol):
    """A search's claim; `cluster.holding.Holding`."""

    @property
    def allotment(self) -> Allotment:
        """The newest heard."""
        ...

    @property
    def held(self) -> Units:
        """What was allotted and not given back, by node."""
        ...

    @property
    def refusal(self) -> EaglerayError | None:
        """Why the ledger does not take it; None where it does."""
        ...

    def state(
        self, *, request: Request | None = None, used: Units | None = None, facts: Facts | None = None
    ) -> None:
        """Say what has changed."""
        ...

    def give_back(self, units: Units) -> None:
        """Give units back, by node."""
        ...


@dataclass(frozen=True)
class Order:
    """A trial has to leave its seat."""

    number: int
    left_s: float | None
    """Seconds in which it may do so by itself; None: there is no limit."""

    @property
    def is_late(self) -> bool:
        """Whether that time is over."""
        return self.left_s is not None and self.left_s <= 0


@dataclass(frozen=True)
class Use:
    """What a search has, and what for."""

    in_use: Units
    """By node: units whose resources Ray has given to it, of trials that end too."""
    asked_for: Units
    """By node: units that Ray was asked for and has not given yet."""
    num_wanted: int
    """Trials that could run at once if there were room."""
    facts: Facts


class Room(Protocol):
    """See the module. Called by the thread that runs the search."""

    @property
    def claim(self) -> str | None:
        """Id of the claim; None where there is none."""
        ...

    @property
    def reason(self) -> str:
        """Why trials have to leave, in words."""
        ...

    def take(self, number: int) -> Units | None:
        """A seat for one more trial: units by node; {} is anywhere. None: there is no room now."""
        ...

    def leave(self, number: int) -> None:
        """The trial does not need its seat any more."""
        ...

    def has_free(self, seat: Units) -> bool:
        """Whether another trial may take such a seat."""
        ...

    def orders(self, progress: Callable[[int], float]) -> list[Order]:
        """The trials that have to leave: the least progressed first. Each is named until it has left."""
        ...

    def prefer(self, nodes: Units) -> None:
        """Seats on these nodes come first: a process waits there."""
        ...

    def tell(self, use: Use) -> None:
        """What the search has; what it does not need is given back.

        Raises: EaglerayError: the ledger refuses what is asked for.
        """
        ...


class Anywhere:
    """The room of a cluster without a ledger."""

    claim: str | None = None
    reason = ""

    def take(self, number: int) -> Units | None:
        """Anywhere."""
        return {}

    def leave(self, number: int) -> None:
        """Nothing."""

    def has_free(self, seat: Units) -> bool:
        """Always."""
        return True

    def orders(self, progress: Callable[[int], float]) -> list[Order]:
        """Nobody."""
        return []

    def prefer(self, nodes: Units) -> None:
        """Nothing."""

    def tell(self, use: Use) -> None:
        """Nothing."""


@dataclass
class Allotted:
    """The room that a claim has. A trial's seat is `units_per_trial` units, on one node or on several."""

    claim: str
    holding: Claim
    request: Callable[[int], Request]
    """The claim's, for so many trials."""
    units_per_trial: int
    clock: Callable[[], float] = time.monotonic
    _seats: dict[int, dict[str, int]] = field(default_factory=dict)
    _leaving: set[int] = field(default_factory=set)
    _preferred: Units = field(default_factory=dict)
    _seen: int = 0
    _deadline_s: float | None = None
    _num_wanted: int | None = None

    @property
    def reason(self) -> str:
        """The newest notice's."""
        return self.holding.allotment.reason

    def take(self, number: int) -> Units | None:
        """Seats on as many nodes as it needs; where a process waits first, then where most is free."""
        free, seat = Counter(self._free()), Counter[str]()
        if free.total() < self.units_per_trial:
            return None
        for _ in range(self.units_per_trial):
            node = min(free, key=lambda node: (-self._preferred.get(node, 0), -free[node], node))
            seat[node] += 1
            free[node] -= 1
            free += Counter()
        self._seats[number] = dict(seat)
        return dict(seat)

    def leave(self, number: int) -> None:
        """Its seat is free, as far as it is still allotted."""
        self._seats.pop(number, None)
        self._leaving.discard(number)

    def has_free(self, seat: Units) -> bool:
        """Whether all of it is free."""
        return Counter(seat) <= self._free()

    def orders(self, progress: Callable[[int], float]) -> list[Order]:
        """Whoever sits where less is allotted than is taken."""
        allotment = self._look()
        over = self._taken() - Counter(allotment.units)
        for number in self._leaving:
            over -= Counter(self._seats[number])
        while over:
            number = min(
                (number for number in self._seats if number not in self._leaving and over & self._of(number)),
                key=lambda number: (progress(number), -number),
            )
            self._leaving.add(number)
            over -= self._of(number)
        left_s = None if self._deadline_s is None else self._deadline_s - self.clock()
        return [Order(number, left_s) for number in sorted(self._leaving)]

    def prefer(self, nodes: Units) -> None:
        """Until the next call."""
        self._preferred = dict(nodes)

    def tell(self, use: Use) -> None:
        """States it; gives back what is not allotted any more and has ended, and what nobody needs."""
        if self.holding.refusal is not None:
            raise self.holding.refusal
        if use.num_wanted != self._num_wanted:
            self._num_wanted = use.num_wanted
            self.holding.state(request=self.request(use.num_wanted))
        self.holding.state(used=use.in_use, facts=use.facts)
        held = Counter(self.holding.held)  # before the allotment: what is granted in between stays
        allotted = Counter(self._look().units)
        busy = (Counter(use.in_use) + Counter(use.asked_for)) | self._taken()
        ended, idle = held - (allotted | busy), (allotted & held) - busy
        num_over = (allotted & held).total() - use.num_wanted * self.units_per_trial
        spare = [*idle.elements()][: max(0, num_over)]
        if ended or spare:
            self.holding.give_back(ended + Counter(spare))

    def _look(self) -> Allotment:
        """The newest allotment; notes until when trials may leave by themselves."""
        allotment = self.holding.allotment
        if allotment.version != self._seen:
            self._seen = allotment.version
            limit_s = allotment.deadline_s
            self._deadline_s = None if limit_s is None else self.clock() + limit_s - FORCE_S
        return allotment

    def _free(self) -> Counter[str]:
        """Allotted, not given back, not taken."""
        held = Counter(self.holding.held)
        return (Counter(self._look().units) & held) - self._taken()

    def _taken(self) -> Counter[str]:
        taken = Counter[str]()
        for seat in self._seats.values():
            taken.update(seat)
        return taken

    def _of(self, number: int) -> Counter[str]:
        return Counter(self._seats[number])
