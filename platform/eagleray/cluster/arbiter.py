"""The ledger's work: hears what holders state, observes the cluster, decides, and has it carried out.

`Arbiter` runs in one event loop and knows no Ray: what touches the cluster is a `Side`, whose methods block
and are called in threads. It forgets everything when it ends: a new one learns of the claims from what their
holders state next, and waits for that before it decides anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from eagleray.capacity import events
from eagleray.capacity.book import Book
from eagleray.capacity.claims import Claim, Observation, Settings
from eagleray.capacity.client import Allotment, Statement, allotment
from eagleray.capacity.decisions import Ask, AskNodes, Evict, Expire, Wait
from eagleray.capacity.placement import Capacity
from eagleray.capacity.policy import decide
from eagleray.cluster.clock import Clock
from eagleray.cluster.event_log import LISTENS_S, EventLog
from eagleray.cluster.report import report_of
from eagleray.cluster.side import Held, Side
from eagleray.cluster.sight import Sight
from eagleray.errors import CapacityError

POLICY = Settings(ask_after_s=0.5)
_BUSY_S, _QUIET_S = 0.25, 1.0
"""Between two looks at the cluster while something moves, and otherwise."""
_MOVES_S = 10.0
_TAKEN_UP_S = 10.0
"""What a ledger has known of for longer has been compared with the capacity."""
_STOOD_STILL_S = 5.0
_CAPACITY_S = 5.0
_TELL_EVERY_S = 2.0
_log = logging.getLogger(__name__)


class Arbiter:
    """For one event loop."""

    def __init__(
        self,
        side: Side,
        log: EventLog,
        *,
        is_restarted: bool,
        policy: Settings = POLICY,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._side, self._event_log, self._policy = side, log, policy
        self._clock = clock or Clock()
        self._is_restarted = is_restarted
        self.started_s = self._clock()
        self._book = Book()
        self._sight = Sight()
        self._capacity: Capacity | None = None
        self._capacity_s = float("-inf")
        self._not_before_s = float("inf")
        """When decisions may begin, or go on."""
        self._expired_s = float("-inf")
        """When a claim was struck out last; only a later look shows what of it still runs."""
        self._passed_s = self.started_s
        self._moved_s = self.started_s
        self._asked: tuple[Ask, ...] | None = None
        """What the cluster was last asked for; None: not known."""
        self._may_have_asks = True
        self._wake, self._hurry, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._eyes, self._hands = ThreadPoolExecutor(1, "eyes"), ThreadPoolExecutor(1, "hands")
        self._force = ThreadPoolExecutor(1, "force")  # it may take seconds, and looks wait for hands
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ended = False

    def start(self) -> None:
        """Begin to observe and to decide."""
        for work in (self._observe_always(), self._decide_always(), self._tell_always()):
            self._spawn(work)

    # What holders call.

    def exchange(self, statement: Statement) -> Allotment | None:
        """As `ClaimClient.exchange`; None where this ledger has been replaced, or ends.

        What is granted to this statement comes with `wait`. The answer says what held when it came in, so
        that its version tells whether what is stated to be held has counted.
        """
        if self._is_ended or self._event_log.fenced:
            return None
        now_s, claim_id = self._clock(), statement.request.claim
        statement = statement.without(self._sight.gone)  # its holder may not know yet
        before = self._book.claims.get(claim_id)
        refusal = self._refusal(statement, before)
        if refusal is not None and before is None:
            raise refusal
        if refusal is not None and before is not None:  # what it has it keeps, as it was asked for before
            statement = replace(statement, request=before.request)
        self._set(self._book.exchange(statement, now_s), now_s)
        if refusal is not None:
            raise refusal
        after = self._book.claims[claim_id]
        if before is None or replace(after, renewed_s=before.renewed_s, facts=before.facts) != before:
            self._moved_s = now_s
            self._wake.set()
        return allotment(after, now_s)

    async def wait(self, claim: str, seen: int, timeout_s: float) -> Allotment | None:
        """As `ClaimClient.wait`; None at once when the claim is closed meanwhile."""
        was_there = False
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (self._is_ended or self._event_log.fenced):
                    found = self._book.claims.get(claim)
                    if found is not None and found.version != seen:
                        return allotment(found, self._clock())
                    if was_there and found is None:
                        return None
                    was_there = found is not None
                    await self._changed.wait()
        return None

    def close(self, claim: str) -> None:
        """As `ClaimClient.close`."""
        self._close(claim)

    def _close(self, claim: str, reason: str | None = None) -> None:
        self._set(self._book.close(claim), self._clock(), reason)
        self._moved_s = self._clock()
        self._wake.set()

    def report(self) -> dict[str, Any]:
        """Who holds what and what waits for what, as plain values; see `report.report_of`."""
        return {
            "time_s": (now_s := self._clock()),
            "started_s": self.started_s,
            "epoch": self._event_log.epoch,
            "is_deciding": self._may_decide(now_s),
            "trouble": self._why_idle(now_s) or self._event_log.trouble,
            **report_of(self._book, self._sight.nodes, now_s),
        }

    async def end(self) -> None:
        """Decide nothing more, leave nothing behind on the cluster; may be called again where it failed."""
        self._is_ended = True
        self._changed.set()
        for task in self._tasks:
            task.cancel()
        try:
            await self._by_hand(self._side.end)
        finally:
            await asyncio.to_thread(self._event_log.close)

    def _refusal(self, statement: Statement, before: Claim | None) -> CapacityError | None:
        """Why what is asked for could never be placed, where that is new; else None."""
        request = statement.request
        if self._capacity is None or (before is None and self._was_taken_up(statement)):
            return None
        if before is not None and (request.minimum, request.label_selector, request.minimum_class) == (
            before.request.minimum, before.request.label_selector, before.request.minimum_class,
        ):  # fmt: skip
            return None
        try:
            request.check(self._capacity)
        except CapacityError as error:
            return error
        return None

    def _was_taken_up(self, statement: Statement) -> bool:
        """Whether an earlier ledger knew of it: what runs runs, and a machine that is away may come back."""
        known = self._book.claims.get(statement.request.claim)
        asked_s = statement.asked_s if known is None else self._clock() - known.opened_s
        return bool(statement.held or statement.used) or asked_s > _TAKEN_UP_S

    def _drop_what_can_never_be(self) -> None:
        """Of claims that came before the capacity was known: when they come again they are refused."""
        for claim in self._book.claims.values():
            refusal = None if claim.held else self._refusal(Statement(claim.request), None)
            if refusal is not None:
                self._close(claim.id, f"can never be placed: {refusal}")

    # Observing.

    async def _observe_always(self) -> None:
        while True:
            try:
                await self._observe()
            except Exception as error:
                if self._sight.lose(error, self._clock()):
                    _log.warning("ledger: %s", self._sight.trouble)
            self._hurry.clear()
            is_moving = self._clock() - self._moved_s < _MOVES_S or self._book.asks
            with suppress(TimeoutError):
                async with asyncio.timeout(_BUSY_S if is_moving else _QUIET_S):
                    await self._hurry.wait()

    async def _observe(self) -> None:
        loop = asyncio.get_running_loop()
        capacity = self._capacity
        if capacity is None or self._clock() - self._capacity_s > _CAPACITY_S:
            is_first, capacity = capacity is None, await loop.run_in_executor(self._eyes, self._side.capacity)
            self._capacity, self._capacity_s = capacity, self._clock()
            if is_first:
                self._drop_what_can_never_be()
        look = partial(self._side.observe, capacity, with_asks=self._may_have_asks)
        began_s = self._clock()
        seen = await loop.run_in_executor(self._eyes, look)
        now_s = self._clock()
        if self._sight.is_first:
            # What runs belongs to holders who have not spoken yet.
            must_listen = self._is_restarted or not seen.is_idle
            self._not_before_s = self.started_s + LISTENS_S if must_listen else now_s
        claims, unsaid_since_s = self._book.claims.values(), now_s - self._policy.start_limit_s
        blind_s = 0.0 if self._sight.is_first else now_s - self._sight.began_s
        if self._sight.take_in(seen, claims, began_s, now_s, unsaid_since_s=unsaid_since_s):
            self._moved_s = now_s
        can_see = not self._sight.blindness(now_s)
        if can_see and blind_s > _STOOD_STILL_S:  # holders may have been cut off, too
            self._listen_first(now_s, f"has not seen the cluster for {blind_s:.0f} s")
        self._event_log.nodes = {
            node.id: {"name": node.name or node.id, "type": node.node_type}
            for node in self._sight.nodes.values()
        }
        self._set(self._book.on(self._sight.nodes, now_s), now_s, reason="its node has gone")
        if seen.asked:  # before it is granted: who gets it would find it taken
            await self._by_hand(self._side.settle, self._sight.free)
        self._wake.set()

    # Deciding.

    async def _decide_always(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_S):
                    await self._wake.wait()
            self._wake.clear()
            now_s = self._clock()
            if now_s - self._passed_s > _STOOD_STILL_S:  # so what holders said meanwhile has not been heard
                self._listen_first(now_s, f"stood still for {now_s - self._passed_s:.0f} s")
            self._passed_s = now_s
            try:
                if self._may_decide(now_s):
                    self._decide(now_s)
            except Exception:  # a round that fails must not be the last
                _log.exception("ledger: a round failed")

    def _listen_first(self, now_s: float, reason: str) -> None:
        self._not_before_s = max(self._not_before_s, now_s + LISTENS_S)
        _log.warning("ledger: %s; listening first", reason)

    def _may_decide(self, now_s: float) -> bool:
        return not self._is_ended and not self._why_idle(now_s) and self._sight.began_s > self._expired_s

    def _why_idle(self, now_s: float) -> str:
        """Why nothing is decided, where that is for longer than a look takes; empty where it is not."""
        if reason := self._event_log.fenced or self._sight.blindness(now_s):
            return reason
        return "the ledger hears its holders before it decides" if now_s < self._not_before_s else ""

    def _decide(self, now_s: float) -> None:
        before, nodes = self._book, tuple(self._sight.nodes.values())
        observation = Observation(now_s, nodes, tuple(before.claims.values()), self._capacity)
        decisions = decide(observation, self._policy)
        self._book = before.carry_out(decisions, now_s)
        self._event_log.append(events.of_round(before, decisions, self._book, now_s))
        for decision in decisions:
            if isinstance(decision, Evict):
                self._spawn(self._evict(decision))
            elif isinstance(decision, Expire):
                self._expired_s = now_s
                self._sight.struck_out(before.claims[decision.claim])
                self._hurry.set()
                _log.warning("ledger: claim %s: %s", decision.claim, decision.reason)
        if any(not isinstance(decision, AskNodes | Wait) for decision in decisions):
            self._moved_s = now_s
            self._notify()
            self._wake.set()
        if self._book.asks != self._asked:
            self._asked, self._may_have_asks = self._book.asks, True
            self._spawn(self._ask(self._book.asks))

    def _set(self, book: Book, now_s: float, reason: str | None = None) -> None:
        """Take what holders did, or what has ended: log it, and tell those who wait."""
        before, self._book = self._book, book
        if before is book:
            return
        self._event_log.append(events.of_exchange(before, book, now_s, reason))
        has_news = False
        for claim_id, claim in before.claims.items():
            after = book.claims.get(claim_id)
            if after is claim:
                continue
            has_news |= after is None or after.version != claim.version
            left = {} if after is None else after.held
            less = {node: units - left.get(node, 0) for node, units in claim.held.items()}
            if gone := {node: units for node, units in less.items() if units > 0}:
                self._sight.given_back(claim, gone, now_s)
                self._hurry.set()
        if has_news or len(book.claims) > len(before.claims):
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Acting.

    async def _ask(self, asks: tuple[Ask, ...]) -> None:
        if asks is not self._asked:
            return  # others have been made since
        try:
            are_left = await self._by_hand(self._side.ask, asks, self._sight.free)
            if not asks and asks is self._asked:
                self._may_have_asks = are_left
                self._asked = None if are_left else asks
        except Exception as error:
            _log.warning("ledger: nodes could not be asked for (%s); trying again", error)
            self._asked = None

    async def _evict(self, decision: Evict) -> None:
        claim = self._book.claims.get(decision.claim)
        if claim is None or not (units := Counter(decision.units) & Counter(claim.giving)):
            return
        try:
            evict = partial(self._side.evict, claim.id, units, claim.keep)
            ended = await asyncio.get_running_loop().run_in_executor(self._force, evict)
        except Exception as error:
            _log.warning(
                "ledger: claim %s could not be ended by force (%s); trying again", decision.claim, error
            )
            return
        claim = self._book.claims.get(claim.id, claim)
        units &= Counter(claim.giving)  # its holder may have given some back meanwhile
        gone = units & (Counter(ended) | Counter(claim.starting))  # what does not run cannot be ended
        if left := dict(units - gone):
            _log.warning("ledger: claim %s: its holder has to end these by itself: %s", decision.claim, left)
        if any(gone.values()):
            now_s = self._clock()
            self._set(self._book.ended(decision.claim, gone, now_s), now_s, reason="ended by force")
            self._wake.set()

    async def _tell_always(self) -> None:
        while True:
            held = [
                Held(node, claim.request.bundle, units)
                for claim in self._book.claims.values()
                for node, units in sorted(claim.held.items())
                if node in self._sight.nodes
            ]
            totals = {node.id: node.total for node in self._sight.nodes.values()}
            try:
                await asyncio.to_thread(
                    self._side.tell, held, totals
                )  # it may hang, and nothing waits for it
            except Exception as error:
                _log.warning("ledger: Ray's coordinator was not told what is held (%s)", error)
            await asyncio.sleep(_TELL_EVERY_S)

    async def _by_hand(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._hands, do, *arguments)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
