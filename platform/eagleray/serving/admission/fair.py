"""`FairQueue`: requests that wait, in turn between keys by weight, within three priorities.

Every step takes constant time: coming, going, giving up. Keys take turns; in each a key may send work worth
its weight. Work that costs more than is left is sent all the same, and the key pays for it by the turns that
it misses: so nothing is looked at twice, and a key does not get more by sending one large thing at a time.
Rounds in which every key would miss its turn are not gone through, but reckoned.

Source: Shreedhar and Varghese 1996 (deficit round robin, section 4) in the form with surplus of Adiseshu,
Parulkar and Varghese 1996.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from eagleray.protocol.key_terms import PRIORITIES, Priority

_COMING = 1.5

T = TypeVar("T")


class Entry(Generic[T]):
    """One thing that waits; it is given back by `push`, for `cancel`."""

    __slots__ = ("after", "before", "cost", "flow", "item")

    def __init__(self, item: T, cost: int, flow: Flow[T]) -> None:
        self.item = item
        self.cost = cost
        self.flow: Flow[T] | None = flow
        """None: it waits no longer."""
        self.before: Entry[T] | None = None
        self.after: Entry[T] | None = None


class Flow(Generic[T]):
    """What waits of one key: a list that is linked both ways, so that any of it can leave."""

    __slots__ = ("band", "cost", "first", "key", "last", "length", "surplus", "weight")

    def __init__(self, key: str, weight: int, band: Band[T]) -> None:
        self.key = key
        self.weight = weight
        self.band = band
        self.surplus = 0
        """What it may still send in this turn; below zero: what it has to miss."""
        self.cost = self.length = 0
        """Of all that waits here, and how many those are."""
        self.first: Entry[T] | None = None
        self.last: Entry[T] | None = None


class Band(Generic[T]):
    """The keys of one priority."""

    __slots__ = ("cost", "is_in_turn", "length", "ring", "weight")

    def __init__(self) -> None:
        self.ring: deque[Flow[T]] = deque()
        """Keys that have something here or have to miss turns, each once; it is the first's turn."""
        self.is_in_turn = False
        """Whether the first has got what its turn is worth."""
        self.cost = self.length = 0
        """Of all that waits here, and how many those are."""
        self.weight = 0
        """Of all keys that have something here."""


class FairQueue(Generic[T]):
    """For one event loop."""

    __slots__ = ("_bands", "_flows", "length")

    def __init__(self) -> None:
        self._bands: dict[Priority, Band[T]] = {priority: Band() for priority in PRIORITIES}
        self._flows: dict[str, Flow[T]] = {}
        self.length = 0
        """What waits; to be read: `len` costs a call."""

    def __len__(self) -> int:
        return self.length

    def push(self, item: T, key: str, weight: int, priority: Priority, cost: int = 1) -> Entry[T]:
        """Let it wait at the end of its key's.

        Args:
            item: What waits.
            key: Whose it is.
            weight: The key's share, 1 or more; that of the first of all that it has here counts.
            priority: That of the key, from now on: what it has here already goes along.
            cost: In units of a plain request, 1 at least.
        """
        flow = self._flows.get(key)
        if flow is None:
            band = self._bands[priority]
            flow = self._flows[key] = Flow(key, weight, band)
            band.ring.append(flow)
        elif flow.band is not self._bands[priority]:
            self._move(flow, self._bands[priority])
        cost = max(1, cost)
        entry = Entry(item, cost, flow)
        if (last := flow.last) is None:
            flow.first, flow.weight = entry, weight
            flow.band.weight += flow.weight
        else:
            last.after, entry.before = entry, last
        flow.last = entry
        flow.length += 1
        flow.cost += cost
        flow.band.cost += cost
        flow.band.length += 1
        self.length += 1
        return entry

    def cancel(self, entry: Entry[T]) -> bool:
        """Let it wait no longer; False where it does not wait any more."""
        flow = entry.flow
        if flow is None:
            return False
        self._remove(entry, flow)
        if not flow.band.cost:
            self._forget(flow.band)
        return True

    def _remove(self, entry: Entry[T], flow: Flow[T]) -> None:
        before, after = entry.before, entry.after
        if before is None:
            flow.first = after
        else:
            before.after = after
        if after is None:
            flow.last = before
        else:
            after.before = before
        entry.flow = entry.before = entry.after = None
        flow.length -= 1
        flow.cost -= entry.cost
        flow.band.cost -= entry.cost
        flow.band.length -= 1
        if flow.first is None:
            flow.band.weight -= flow.weight
        self.length -= 1

    def pop(self) -> T | None:
        """What has its turn, which waits here no longer; None where nothing waits."""
        if not self.length:
            return None
        for band in self._bands.values():
            if band.cost:
                entry = self._next(band)
                if not band.cost:
                    self._forget(band)
                return entry.item
        raise AssertionError("what waits is in a band")

    def forgive(self, key: str, cost: int) -> None:
        """Give a key back what something cost that `pop` gave out and that nobody wants any more."""
        if (flow := self._flows.get(key)) is not None:
            flow.surplus += max(1, cost)

    def ahead(self, key: str, weight: int, priority: Priority) -> float:
        """The cost of what goes before something that came now."""
        total = 0.0
        for name, band in self._bands.items():
            if name != priority:
                total += band.cost
                continue
            if not band.cost:
                return total
            flow = self._flows.get(key)
            own = 0 if flow is None else flow.cost
            weights = band.weight + (0 if own else weight)
            # Its key's own, and of each other what that may send meanwhile: what there is of it or somewhat
            # more, for others go on coming. Without that what a light key is foretold is a tenth too little.
            # What it costs itself is not known yet: as much as those that wait.
            itself = band.cost / band.length
            return total + min(_COMING * band.cost, (own + itself) * weights / weight - itself)
        raise AssertionError("a priority is one of three")

    def has_room(self, key: str, weight: int, priority: Priority, most: int) -> bool:
        """Whether one thing more of the key may wait where `most` are to.

        Who has less waiting than his share gets in all the same, up to twice as many: one key that sends
        without end keeps nobody out. Where what he waits for takes all of it, he has no share.
        """
        if self.length < most:
            return True
        if self.length >= 2 * most:
            return False
        flow, before = self._flows.get(key), 0
        for name, band in self._bands.items():
            if name == priority:
                break
            before += band.length
        own = 0 if flow is None else flow.length
        return most > before and own < max(1.0, self._share(own, weight, priority, most - before))

    def has_room_for(self, cost: int, key: str, weight: int, priority: Priority, most: int) -> bool:
        """As `has_room`, where all that waits is to cost `most`, and what comes `cost`."""
        flow, before, total = self._flows.get(key), 0, cost
        is_before = True
        for name, band in self._bands.items():
            is_before = is_before and name != priority
            before += band.cost if is_before else 0
            total += band.cost
        if total <= most:
            return True
        if total > 2 * most:
            return False
        own = 0 if flow is None else flow.cost
        return most > before and (not own or own + cost <= self._share(own, weight, priority, most - before))

    def _share(self, own: int, weight: int, priority: Priority, left: float) -> float:
        """What is due of what is `left` to his priority to one who has `own` here."""
        weights = self._bands[priority].weight + (0 if own else weight)
        return left * weight / weights

    def _next(self, band: Band[T]) -> Entry[T]:
        """What has its turn among those of this band, of which one at least has something."""
        ring, num_missed = band.ring, 0
        while True:
            if num_missed == len(ring):  # all have missed a turn: the next ones likewise are not gone through
                num_missed = 0
                self._skip(band)
            flow = ring[0]
            if not band.is_in_turn:
                flow.surplus += flow.weight
                band.is_in_turn = True
            entry = flow.first
            if entry is not None and flow.surplus > 0:
                self._remove(entry, flow)
                flow.surplus -= entry.cost
                if flow.first is not None and flow.surplus > 0:
                    return entry
            band.is_in_turn = False
            if flow.first is None and flow.surplus >= 0:
                ring.popleft()
                del self._flows[flow.key]
            else:
                ring.rotate(-1)
                num_missed += 1
            if entry is not None and entry.flow is None:
                return entry

    def _skip(self, band: Band[T]) -> None:
        """Give all keys the rounds that go by before any of them may send something."""
        ring = band.ring
        rounds = min(-flow.surplus // flow.weight for flow in ring if flow.first is not None)
        for _ in range(len(ring) if rounds else 0):
            flow = ring.popleft()
            flow.surplus += rounds * flow.weight
            if flow.first is None and flow.surplus >= 0:
                del self._flows[flow.key]
            else:
                ring.append(flow)

    def _move(self, flow: Flow[T], band: Band[T]) -> None:
        before = flow.band
        if before.ring[0] is flow:
            before.is_in_turn = False
        before.ring.remove(flow)
        band.ring.append(flow)
        weight = flow.weight if flow.first is not None else 0
        for of, sign in ((before, -1), (band, 1)):
            of.cost += sign * flow.cost
            of.length += sign * flow.length
            of.weight += sign * weight
        flow.band = band
        if not before.cost:
            self._forget(before)

    def _forget(self, band: Band[T]) -> None:
        """Where nobody waits nobody has to miss a turn."""
        for flow in band.ring:
            del self._flows[flow.key]
        band.ring.clear()
        band.is_in_turn = False
