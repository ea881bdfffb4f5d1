"""`ResponseCache`: answers that a gateway gives again to the same question, for the versions that ask for it.

A version with `cache_mib` has a shelf: its newest answers, least recently used first out, and the requests
that wait for one that somebody else is asking for already. A request has a seat there. The first one with a
key leads and asks the replica; those that come meanwhile take its answer. Where it ends without one the next
of them leads, so that nobody shares another's failure or its client's patience.

Nothing here waits or fails a request. Admission is before it: what is found was asked for by somebody who may
ask this model.

Source: RFC 9111, section 4 (what may be reused); RFC 9211 (`Cache-Status`).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from eagleray.serving.routes import Routes, Target

if TYPE_CHECKING:
    from eagleray.serving.ingress.http import Response

STATUS = "cache-status"
HIT = "eagleray; hit"
SHARED = "eagleray; fwd=miss; collapsed"
MISS = "eagleray; fwd=miss"
STORED = "eagleray; fwd=miss; stored"
REFRESHED = "eagleray; fwd=request; stored"
REQUESTED = "eagleray; fwd=request"
LONG_BYTES = 2**20
"""Of a body: from here on its key is computed in a thread, which takes half a millisecond."""
OVERHEAD_BYTES = 640
"""Of one answer, beside its body: its key, its headers, its place in the tables (measured: 340 to 510)."""

Result = Literal["hit", "miss", "shared", "bypassed"]
RESULTS: tuple[Result, ...] = ("hit", "miss", "shared", "bypassed")
Buffer = bytes | bytearray | memoryview
Soon = Callable[..., object]


class Wishes(NamedTuple):
    """What a request's Cache-Control says."""

    is_fresh: bool = False
    """It is to be computed now (no-cache)."""
    is_private: bool = False
    """Nothing of it is to be kept (no-store)."""


_NO_WISHES = Wishes()


def wishes(cache_control: str | None) -> Wishes:
    """What the header asks for; other directives change nothing."""
    if not cache_control:
        return _NO_WISHES
    names = {part.partition("=")[0].strip() for part in cache_control.lower().split(",")}
    return Wishes("no-cache" in names, "no-store" in names)


class Kept(NamedTuple):
    """An answer, as it was sent first."""

    body: bytes
    media_type: str
    headers: Mapping[str, str]
    made_s: float
    """By time.monotonic."""

    @property
    def num_bytes(self) -> int:
        """Of memory, more or less."""
        return len(self.body) + OVERHEAD_BYTES

    def headers_for(self, status: str) -> dict[str, str]:
        """When it is sent again, with this Cache-Status."""
        headers = {**self.headers, STATUS: status}
        if status == HIT:
            headers["age"] = str(int(time.monotonic() - self.made_s))
        return headers


class Waiter(Protocol):
    """A request that waits for another's answer. One of both is called, once, soon, and in the loop.

    It may have ended meanwhile.
    """

    def take(self, kept: Kept) -> None:
        """This is the answer."""
        ...

    def go_on(self) -> None:
        """There will be none: ask the replica. Others may wait for that."""
        ...


class _Flight:
    """One question that is being asked, by the seat that leads."""

    __slots__ = ("body", "key", "waiting")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.body: bytes | None = None
        """Once for all who wait; None: nobody has, yet."""
        self.waiting: dict[Seat, None] = {}


class Seat:
    """A request's place. Ended by `keep` or `leave`, whichever is first; what comes later changes nothing."""

    __slots__ = ("_flight", "_key", "_shelf", "_waiter", "is_leading")

    def __init__(
        self, shelf: Shelf, key: bytes, flight: _Flight | None, waiter: Waiter, *, is_leading: bool
    ) -> None:
        self._shelf, self._key, self._flight, self._waiter = shelf, key, flight, waiter
        self.is_leading = is_leading
        """Whether it is to ask the replica."""

    def keep(self, response: Response) -> None:
        """Give the answer to those who wait, and to those who come. Sets its Cache-Status.

        `response` is as it is to be sent, but for what is this request's alone.
        """
        shelf, flight = self._shelf, self._flight
        kept = Kept(bytes(response.body), response.media_type, dict(response.headers), time.monotonic())
        is_stored = shelf.put(self._key, kept)
        if flight is None:
            response.headers[STATUS] = REFRESHED if is_stored else REQUESTED
            return
        response.headers[STATUS] = STORED if is_stored else MISS
        self._flight = None
        shelf.end(flight)
        for seat in flight.waiting:
            seat._flight = None
            shelf.count("shared")
            shelf.soon(seat._waiter.take, kept)

    def shared(self, body: Buffer) -> bytes:
        """The same bytes, of which all who wait have one copy: theirs are to go. Of one that waits."""
        flight = self._flight
        assert flight is not None
        if flight.body is None:
            flight.body = bytes(body)
        return flight.body

    def leave(self) -> None:
        """It ends without an answer, or has it already."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if not self.is_leading:
            flight.waiting.pop(self, None)
        elif flight.waiting:
            heir = next(iter(flight.waiting))
            del flight.waiting[heir]
            heir.is_leading = True
            self._shelf.count("miss")
            self._shelf.soon(heir._waiter.go_on)
        else:
            self._shelf.end(flight)


class Shelf:
    """The answers of one version.

    Args:
        target: The version.
        count: Called with what became of each request.
        soon: As a loop's `call_soon`.
    """

    def __init__(self, target: Target, count: Callable[[Result], None], soon: Soon) -> None:
        self.count, self.soon = count, soon
        self.num_bytes = 0
        self._limit_bytes = target.cache_bytes
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        # An answer names its model and version, so one package under two names has two.
        self._base = hashlib.sha256("\0".join((target.name, str(target.version), target.digest, "")).encode())

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, body: Buffer, header: str, coding: str) -> bytes:
        """Of all that an answer depends on, where nobody can make two questions of one key.

        Args:
            body: Unpacked: inputs, parameters and wanted outputs are in it.
            header: How long its JSON is, where values follow; else empty.
            coding: That the answer is to come in; empty for none.
        """
        found = self._base.copy()
        found.update(f"{coding}\0{len(header)}\0{header}\0".encode())
        found.update(body)
        return found.digest()

    def find(self, key: bytes) -> Kept | None:
        """The answer, where there is one."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            self.count("hit")
        return kept

    def join(self, key: bytes, waiter: Waiter) -> Seat:
        """A seat with those who ask the same; the first of them leads."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(key)
            self.count("miss")
            return Seat(self, key, flight, waiter, is_leading=True)
        seat = Seat(self, key, flight, waiter, is_leading=False)
        flight.waiting[seat] = None
        return seat

    def alone(self, key: bytes, waiter: Waiter) -> Seat:
        """A seat for one that takes nobody's answer, but whose own is kept."""
        self.count("bypassed")
        return Seat(self, key, None, waiter, is_leading=True)

    def put(self, key: bytes, kept: Kept) -> bool:
        """Keep it, and let those go that were not asked for longest; whether there is room for it."""
        self._remove(key)
        if kept.num_bytes > self._limit_bytes:
            return False
        self._kept[key] = kept
        self.num_bytes += kept.num_bytes
        self._fit()
        return True

    def end(self, flight: _Flight) -> None:
        """Nobody asks that any more."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def resize(self, limit_bytes: int) -> None:
        """Have so much room from now on; 0: the version is gone, and what is still asked is not kept."""
        self._limit_bytes = limit_bytes
        self._fit()

    def _fit(self) -> None:
        while self.num_bytes > self._limit_bytes:
            self._remove(next(iter(self._kept)))

    def _remove(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes


def _soon(step: Callable[..., object], *arguments: object) -> None:
    asyncio.get_running_loop().call_soon(step, *arguments)


class ResponseCache:
    """The shelves of one gateway, for one loop.

    Args:
        soon: As a loop's `call_soon`; the running one's where it is not given.
    """

    def __init__(self, soon: Soon = _soon) -> None:
        self._soon = soon
        self._shelves: dict[tuple[str, str], Shelf] = {}
        self._targets: dict[tuple[str, str], Target] = {}
        self.counts: dict[tuple[str, str, Result], int] = {}
        """Requests by model, version and what became of them."""

    def shelf(self, target: Target) -> Shelf | None:
        """That of a version; None where it has none, or none any more."""
        return self._shelves.get((target.app, target.digest))

    def follow(self, routes: Routes) -> None:
        """Have shelves for these versions, as large as they say; forget the answers of all others."""
        wanted = {
            (target.app, target.digest): target
            for route in routes.models.values()
            for target in route.versions.values()
            if target.cache_bytes
        }
        for place in self._shelves.keys() - wanted.keys():
            self._shelves.pop(place).resize(0)
        for place, target in wanted.items():
            if (shelf := self._shelves.get(place)) is None:
                self._shelves[place] = Shelf(target, self._counter(target), self._soon)
            else:
                shelf.resize(target.cache_bytes)
        self._targets = wanted

    def sizes(self) -> dict[tuple[str, str], int]:
        """Bytes that are kept, by model and version."""
        return {
            (target.name, str(target.version)): self._shelves[place].num_bytes
            for place, target in self._targets.items()
        }

    def _counter(self, target: Target) -> Callable[[Result], None]:
        counts, name, version = self.counts, target.name, str(target.version)
        for result in RESULTS:
            counts.setdefault((name, version, result), 0)

        def count(result: Result) -> None:
            counts[name, version, result] += 1

        return count
