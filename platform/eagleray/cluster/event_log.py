"""The ledger's event log: numbered immutable segments under EAGLERAY_STORAGE, which outlive the head.

    <storage>/ledger/<cluster>/segment-0000000001.jsonl
        first line     schema, epoch, cluster, session, segment, started_s, closed_s, dropped, nodes
        other lines    one `capacity.Event` each, as its `to_json` gives it

A ledger begins with a segment of its own that has no events, and with an epoch one higher than the last
one's. Each name is written once: so a ledger that finds the next name taken by a higher epoch has been
replaced, and must decide no more.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from eagleray.capacity.events import SCHEMA, Event
from eagleray.errors import InputError
from eagleray.packaging.storage import Folder

MOST_EVENTS = 256
"""In one segment."""
LISTENS_S = 3.0
"""So long a ledger that takes over waits for its holders, each of whom speaks once a second; what nobody has
said to hold by then counts as given back."""
_MOST_KEPT = 100_000
"""In memory, while the storage refuses; the oldest go first."""
_LOOK_EVERY_S = 10.0
"""For a newer ledger, while there is nothing to write."""
_MOST_LOOKS = 3
"""At a next segment that is damaged, before it is left behind."""
_NAME = re.compile(r"segment-\d{10}\.jsonl")
_logger = logging.getLogger(__name__)


class _Damage(InputError):
    """What should be a segment is none."""


def url_of(storage_url: str, cluster: str) -> str:
    """Where the log of the cluster called `cluster` lies."""
    return f"{storage_url.rstrip('/')}/ledger/{cluster}"


def read(url: str, *, since_s: float = 0.0, names: dict[str, str] | None = None) -> Iterator[Event]:
    """The events of a log, in their order, those of all ledgers that wrote it.

    A claim that held something to the end of its ledger, and did not go on with the next one, has a `close`
    here that is in no segment: its cluster has ended, or its holder while there was no ledger.

    Args:
        url: The log's folder, as `url_of` gives it; one that does not exist has no events.
        since_s: Seconds since the epoch; events before it are left out.
        names: Filled, on the way, with what the nodes are called, by id.

    Raises:
        InputError: a segment is damaged, or of a schema that this version does not read.
        OSError: the storage cannot be read.
    """
    folder = Folder(url)
    segments = [name for name in folder.list() if _NAME.fullmatch(name)]
    first = 0
    if since_s:
        first = bisect_left(segments, since_s, key=lambda name: _header(folder, name)["closed_s"])
    standing = _Standing()
    for name in segments[first:]:
        header, *lines = _lines(folder, name)
        standing.begin(header["session"], header.get("started_s", 0.0))
        if names is not None:
            names |= {node: about["name"] for node, about in header.get("nodes", {}).items()}
        for line in lines:
            event = Event.from_json(line)
            found = [*standing.ended_by(event.time_s), event]
            standing.take(event)
            yield from (event for event in found if event.time_s >= since_s)
    yield from (event for event in standing.ended_by(time.time()) if event.time_s >= since_s)


class _Standing:
    """The claims that hold something, from one segment to the next: to close those that nobody has closed."""

    def __init__(self) -> None:
        self._writer: tuple[str, float] | None = None
        """Session and start of the ledger that wrote the segment."""
        self._held: dict[str, Event] = {}
        """By claim: its last event."""
        self._left: dict[str, Event] = {}
        """The same of the ledgers before, of those claims that this one has not heard of."""
        self._due_s = 0.0
        """When these have ended."""

    def begin(self, session: str, started_s: float) -> None:
        """A segment begins; where another ledger wrote it, that opens each claim anew."""
        before, self._writer = self._writer, (session, started_s)
        if before is not None and before != self._writer:
            self._left, self._held = {**self._left, **self._held}, {}
            self._due_s = started_s + (LISTENS_S if session == before[0] else 0.0)

    def ended_by(self, time_s: float) -> Iterator[Event]:
        """What has ended before that time with its ledger."""
        if time_s <= self._due_s:
            return
        for last in self._left.values():
            at_s = max(self._due_s, last.time_s)
            reason = "its ledger ended, and it did not go on with the next"
            units = last.size + (last.units if last.kind in ("notice", "suspend") else 0)
            yield Event(at_s, "close", last.claim, last.holder, last.rank, reason, units, last.held)
        self._left = {}

    def take(self, event: Event) -> None:
        """An event of the ledger whose segment it is."""
        self._left.pop(event.claim, None)
        self._held.pop(event.claim, None)
        if event.held:
            self._held[event.claim] = event


class EventLog:
    """Writes events in a thread of its own; nothing here blocks or raises, whatever the storage does."""

    def __init__(
        self,
        storage_url: str,
        cluster: str,
        session: str,
        *,
        every_s: float = 1.0,
        retry_s: float = 5.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Begin the log of a ledger.

        Args:
            storage_url: EAGLERAY_STORAGE.
            cluster: The cluster's name.
            session: Tells this cluster from others of its name; the same for each ledger of one cluster.
            every_s: Seconds after its first event at which a segment is closed.
            retry_s: Seconds between two attempts where the storage refuses.
            now: Seconds since the epoch.
        """
        self._storage_url, self._cluster, self._session = storage_url, cluster, session
        self._every_s, self._retry_s, self._now = every_s, retry_s, now
        self._started_s = now()
        self.nodes: Mapping[str, Mapping[str, str]] = {}
        """By id: name and type of the nodes that are there; beside the events, which name ids alone."""
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._first_s = 0.0
        """Monotonic time of the oldest event that waits."""
        self._batch: list[Event] = []
        """What is being written: the same at each attempt, as the answer to one that worked may be lost."""
        self._missing = 0
        """Events dropped before the batch."""
        self._changed = threading.Condition()
        """Guards the events, `_dropped`, `_first_s` and `_is_closing`; the batch is the thread's own."""
        self._is_closing = False
        self._folder: Folder | None = None
        self._number = 0
        """Of the last segment written."""
        self._num_looks = 0
        """At a next segment that is damaged."""
        self._epoch: int | None = None
        self._fenced, self._trouble = "", ""
        self._thread = threading.Thread(target=self._run, name="event log", daemon=True)
        self._thread.start()

    @property
    def epoch(self) -> int | None:
        """Of this ledger; None until the storage has been read."""
        return self._epoch

    @property
    def fenced(self) -> str:
        """Why this ledger must decide no more, in words; empty where it may."""
        return self._fenced

    @property
    def trouble(self) -> str:
        """Why events wait in memory, in words; empty where they do not."""
        return self._trouble

    def append(self, events: Iterable[Event]) -> None:
        """Take events; they are written within a second or so."""
        with self._changed:
            if not self._events:
                self._first_s = time.monotonic()
            self._events.extend(events)
            while len(self._events) > _MOST_KEPT:
                self._events.popleft()
                self._dropped += 1
            if self._events:
                self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and end; returns after `timeout_s` at the latest."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    # The thread.

    def _run(self) -> None:
        is_last = False
        while not (is_last or self._fenced):
            is_last = self._is_closing
            try:
                if self._epoch is None:
                    self._begin(Folder(url_of(self._storage_url, self._cluster)))
                self._await_work()
                while self._write():
                    pass
                self._trouble = ""
            except Exception as error:  # the storage's own kinds, too: nothing of it may end the thread
                self._fail(error)

    def _await_work(self) -> None:
        """Return when a segment is full or due, it is time to look around, or at the end."""
        with self._changed:
            if self._batch:
                return
            self._changed.wait_for(lambda: self._events or self._is_closing, _LOOK_EVERY_S)
            if self._events:
                due_s = self._first_s + self._every_s - time.monotonic()
                self._changed.wait_for(
                    lambda: self._is_closing or len(self._events) >= MOST_EVENTS, max(0.0, due_s)
                )

    def _fail(self, error: Exception) -> None:
        """Say once what is wrong, and wait until it is time to try again."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        trouble = (
            f"the event log {url_of(self._storage_url, self._cluster)} cannot be written ({reason}); events "
            "are kept in memory, and it is tried again"
        )
        if trouble != self._trouble:
            _logger.warning("ledger: %s", trouble)
        self._trouble = trouble
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, self._retry_s)

    def _begin(self, folder: Folder) -> None:
        """Take an epoch, by a segment without events. Raises: OSError."""
        while True:
            names = [name for name in folder.list() if _NAME.fullmatch(name)]
            number, epoch = _number(names[-1]) + 1 if names else 1, _last_epoch(folder, names) + 1
            if folder.create(_name(number), self._segment(number, epoch, [], 0)):
                self._folder, self._number, self._epoch = folder, number, epoch
                return

    def _write(self) -> bool:
        """Write a segment of what waits, or look for a newer ledger; whether more waits.

        Raises:
            OSError: the storage refuses.
            InputError: the next segment is there and cannot be read; where it stays damaged, the log goes on
                behind it.
        """
        try:
            more_waits = self._write_next()
        except _Damage as damage:
            self._num_looks += 1
            if self._num_looks < _MOST_LOOKS:
                raise
            self._get_past(damage)
            more_waits = not self._fenced
        self._num_looks = 0
        return more_waits

    def _get_past(self, damage: _Damage) -> None:
        """Go on behind a next segment that is damaged, unless another ledger has. Raises: OSError."""
        assert self._folder is not None
        for name in self._folder.list():
            if _NAME.fullmatch(name) and name > _name(self._number):
                with suppress(_Damage):
                    if _header(self._folder, name).get("started_s") != self._started_s:
                        self._find_taken(name)
                        return
        self._begin(self._folder)
        _logger.warning("ledger: %s; segment %d goes on, as epoch %d", damage, self._number, self._epoch)

    def _write_next(self) -> bool:
        assert self._folder is not None
        assert self._epoch is not None
        with self._changed:
            if self._events and not self._batch:
                self._batch = [self._events.popleft() for _ in range(min(MOST_EVENTS, len(self._events)))]
                self._missing, self._dropped, self._first_s = self._dropped, 0, time.monotonic()
        number, name = self._number + 1, _name(self._number + 1)
        if not self._batch:
            if self._folder.exists(name):
                self._find_taken(name)
            return False
        data = self._segment(number, self._epoch, self._batch, self._missing)
        if not self._folder.create(name, data) and not self._is_mine(name):
            self._find_taken(name)
            return not self._fenced
        self._number, self._batch = number, []
        with self._changed:
            return bool(self._events) and (self._is_closing or len(self._events) >= MOST_EVENTS)

    def _is_mine(self, name: str) -> bool:
        """Whether an earlier attempt has written it, of which the storage had said that it failed."""
        assert self._folder is not None
        header = _header(self._folder, name)
        return (header["session"], header["epoch"]) == (self._session, self._epoch)

    def _find_taken(self, name: str) -> None:
        """Another ledger has written the next segment: end here, or, if it is another cluster's, move on."""
        assert self._folder is not None
        header = _header(self._folder, name)
        if header["session"] == self._session:
            self._fenced = (
                f"a newer ledger of this cluster (epoch {header['epoch']}) writes {self._folder.url}; "
                f"this one (epoch {self._epoch}) decides no more"
            )
            _logger.warning("ledger: %s", self._fenced)
            return
        own = f"{self._cluster}.{self._session[-8:]}"
        _logger.warning(
            "ledger: another cluster called %r writes its events to %s; those of this one go to %s. Give one "
            "of them another name",
            self._cluster, self._folder.url, url_of(self._storage_url, own),
        )  # fmt: skip
        self._begin(Folder(url_of(self._storage_url, own)))

    def _segment(self, number: int, epoch: int, events: list[Event], dropped: int) -> bytes:
        header = {
            "schema": SCHEMA,
            "epoch": epoch,
            "cluster": self._cluster,
            "session": self._session,
            "segment": number,
            "started_s": self._started_s,
            "closed_s": self._now(),
            "dropped": dropped,
            "nodes": dict(self.nodes),
        }
        lines = [header, *(event.to_json() for event in events)]
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()


def _name(number: int) -> str:
    return f"segment-{number:010d}.jsonl"


def _number(name: str) -> int:
    return int(name.removeprefix("segment-").removesuffix(".jsonl"))


def _last_epoch(folder: Folder, names: list[str]) -> int:
    """The newest epoch that may have been taken: each segment that cannot be read may have begun one."""
    num_damaged = 0
    for name in reversed(names):
        try:
            return _header(folder, name)["epoch"] + num_damaged
        except InputError as error:
            _logger.warning("ledger: %s", error)
            num_damaged += 1
    return num_damaged


def _header(folder: Folder, name: str) -> dict[str, Any]:
    return _lines(folder, name)[0]


def _lines(folder: Folder, name: str) -> list[dict[str, Any]]:
    """A segment's lines, the header first. Raises: InputError: it is damaged, or of another schema."""
    try:
        header, *events = [json.loads(line) for line in folder.read_bytes(name).splitlines()]
        known = {"epoch": int, "session": str, "segment": int, "closed_s": int | float}
        is_whole = all(isinstance(header[key], kind) for key, kind in known.items())
    except (ValueError, KeyError, TypeError) as error:
        raise _Damage(f"{folder.url}/{name} is no segment of an event log: {error}") from None
    if header.get("schema") == SCHEMA and not is_whole:
        raise _Damage(f"{folder.url}/{name} is no segment of an event log: its first line is damaged")
    if header.get("schema") != SCHEMA:
        raise InputError(
            f"{folder.url}/{name} is of schema {header.get('schema')!r}; this version reads schema {SCHEMA}"
        )
    return [header, *events]
