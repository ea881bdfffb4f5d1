"""The replicas of one application: a link to each, the less busy of two chosen, one more try where safe."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eagleray.serving.link import handshake
from eagleray.serving.link.answers import OnAnswer
from eagleray.serving.link.client import Link, OnPiece, connect
from eagleray.serving.link.frames import Buffer
from eagleray.serving.link.handshake import LinkRefused
from eagleray.serving.link.retries import Request, RetryBudget
from eagleray.serving.link.ring import RingOptions, Slot
from eagleray.serving.link.sockets import ReplicaAddress

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0
_RETIRE_S = 300.0
"""A link to a replica that is no longer listed ends with its last request, or after so long."""
_RETIRE_POLL_S = 0.1


@dataclass(eq=False)
class _Member:
    """One replica that is listed."""

    address: ReplicaAddress
    link: Link | None = None
    is_lost: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    problem: str = ""


class Pool:
    """Links to all replicas of one application. Every method in its loop.

    Args:
        key: The cluster's 32 bytes.
        node: This gateway's node: replicas of the same node are reached by their unix socket.
        max_frame_bytes: The most that either end takes in one frame.
        ring: Shared memory for each link on the same node; None: all through sockets.
        budget: For second tries; may be shared by pools.
        on_change: Called when a link is there, or was refused.
    """

    def __init__(
        self,
        key: bytes,
        *,
        node: str,
        max_frame_bytes: int,
        ring: RingOptions | None,
        budget: RetryBudget | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._key, self._node, self._ring = handshake.check_key(key), node, ring
        self._on_change = on_change
        self._max_frame_bytes = max_frame_bytes
        self.budget = budget or RetryBudget()
        self.num_sent = 0
        """Requests, those that were sent twice once."""
        self._members: dict[str, _Member] = {}
        self._links: list[Link] = []
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def links(self) -> Sequence[Link]:
        """Those that are open, draining ones too."""
        return self._links

    @property
    def in_flight(self) -> int:
        """Requests with all replicas that are listed."""
        return sum(link.in_flight for link in self._links)

    def update(self, addresses: Sequence[ReplicaAddress]) -> None:
        """These are the replicas now. Links to others take no more, and end when what runs has ended."""
        listed = {
            address["instance"]: address
            for address in addresses
            if address.get("protocol") == handshake.PROTOCOL and address.get("instance")
        }
        for instance in self._members.keys() - listed.keys():
            self._retire(self._members.pop(instance))
        for instance in listed.keys() - self._members.keys():
            member = self._members[instance] = _Member(listed[instance])
            member.task = asyncio.get_running_loop().create_task(self._keep(member))

    def choose(self, besides: Link | None = None) -> Link | None:
        """The less busy of two replicas drawn at random; None: there is none, besides that one."""
        links = self._links
        count = len(links)
        if count == 0:
            return None
        if count == 1:
            link = links[0]
            return link if link is not besides and link.takes_requests else None
        first = int(random.random() * count)
        link = links[first]
        other = links[(first + 1 + int(random.random() * (count - 1))) % count]
        if link is besides or not link.takes_requests:
            link = other
        elif other is not besides and other.takes_requests and other.in_flight < link.in_flight:
            return other
        if link is not besides and link.takes_requests:
            return link
        rest = [link for link in links if link is not besides and link.takes_requests]
        return min(rest, key=_in_flight) if rest else None

    def infer(
        self,
        parts: Sequence[Buffer],
        deadline_ms: int,
        on_answer: OnAnswer,
        *,
        link: Link | None = None,
        is_idempotent: bool = True,
    ) -> Request | None:
        """Send tensors to a replica, once more to another where the first did not answer; None: no replica.

        The parts must not change until the answer, nor after `Request.cancel`. `link`: as `choose` gave it.
        """
        link = link or self.choose()
        if link is None:
            return None

        def again(other: Link, left_ms: int, on_second: OnAnswer) -> int:
            return other.infer(parts, left_ms, on_second)

        request = self._request(on_answer, deadline_ms, again, is_idempotent=is_idempotent)
        request.begun(link, link.infer(parts, deadline_ms, request.answered))
        return request

    def infer_in_slot(  # noqa: PLR0917
        self,
        link: Link,
        slot: Slot,
        offset: int,
        length: int,
        head: bytes,
        deadline_ms: int,
        on_answer: OnAnswer,
        *,
        is_idempotent: bool = True,
    ) -> Request:
        """As `infer`, with values in a slot of `link`; a second try goes through the other one's socket.

        The answer is to be released in `on_answer`, or soon after it.
        """
        values = slot.view[offset : offset + length]

        def again(other: Link, left_ms: int, on_second: OnAnswer) -> int:
            # Copied: what waits in the other's socket may outlive the request, and with it the slot.
            return other.infer((head, bytes(values)), left_ms, on_second)

        request = self._request(on_answer, deadline_ms, again, is_idempotent=is_idempotent)
        stream = link.infer_in_slot(slot, offset, length, head, deadline_ms, request.answered)
        request.begun(link, stream)
        return request

    def generate(
        self,
        body: bytes,
        deadline_ms: int,
        on_piece: OnPiece,
        on_end: OnAnswer,
        *,
        is_idempotent: bool = True,
    ) -> Request | None:
        """Send a request for text; once more to another replica where no piece came; None: no replica."""
        link = self.choose()
        if link is None:
            return None

        def take(piece: bytes, tokens: int) -> None:
            request.is_begun_to_answer()
            on_piece(piece, tokens)

        def again(other: Link, left_ms: int, on_second: OnAnswer) -> int:
            return other.generate(body, left_ms, take, on_second)

        request = self._request(on_end, deadline_ms, again, is_idempotent=is_idempotent)
        request.begun(link, link.generate(body, deadline_ms, take, request.answered))
        return request

    def problems(self) -> dict[str, str]:
        """Why there is no link, for each listed replica without one."""
        return {name: member.problem for name, member in self._members.items() if member.link is None}

    @property
    def is_connecting(self) -> bool:
        """Whether a link may be there in a moment: one is being made, and has not failed yet."""
        return any(member.link is None and not member.problem for member in self._members.values())

    async def close(self) -> None:
        """End all links; what is in flight is LOST, without a second try."""
        members, self._members, self._links = list(self._members.values()), {}, []
        tasks = [*self._retiring, *(member.task for member in members if member.task is not None)]
        for task in tasks:
            task.cancel()
        for member in members:
            if member.link is not None:
                member.link.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _request(
        self,
        on_answer: OnAnswer,
        deadline_ms: int,
        again: Callable[[Link, int, OnAnswer], int],
        *,
        is_idempotent: bool,
    ) -> Request:
        self.budget.earn()
        self.num_sent += 1
        return Request(self, on_answer, deadline_ms, again, is_safe=is_idempotent)

    async def _keep(self, member: _Member) -> None:
        """Have a link to a replica as long as it is listed."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                link = await self._connect(member)
            except LinkRefused as error:
                if str(error) != member.problem:
                    log.warning("%s", error)
                member.problem = str(error)
                self._on_change()
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(_LONGEST_WAIT_S, wait_s * 2)
                continue
            member.problem, wait_s = "", _FIRST_WAIT_S
            if link.is_open:
                await member.is_lost.wait()
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    async def _connect(self, member: _Member) -> Link:
        """By the unix socket where it is this node's, else, or where that fails, by TCP."""
        address = member.address
        if address["node"] == self._node and address["unix"] and Path(address["unix"]).exists():
            try:
                return await self._link(member, address["unix"])
            except LinkRefused as error:
                log.info("by TCP, since %s", error)
        return await self._link(member, address["tcp"])

    async def _link(self, member: _Member, where: str) -> Link:
        member.is_lost.clear()

        def on_lost(link: Link, reason: str) -> None:
            log.info("the link to replica %s ended: %s", link.instance[:12], reason)
            if link in self._links:
                self._links.remove(link)
            if member.link is link:
                member.link = None
            member.is_lost.set()

        link = await connect(
            where,
            self._key,
            instance=member.address["instance"],
            max_frame_bytes=self._max_frame_bytes,
            ring=self._ring,
            on_lost=on_lost,
        )
        if link.is_open:  # else it was lost before it was known
            member.link = link
            self._links.append(link)
            self._on_change()
        return link

    def _retire(self, member: _Member) -> None:
        if member.task is not None:
            member.task.cancel()
        link = member.link
        if link is None:
            return
        self._links.remove(link)
        task = asyncio.get_running_loop().create_task(_close_when_idle(link))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _close_when_idle(link: Link) -> None:
    try:
        async with asyncio.timeout(_RETIRE_S):
            while link.is_open and link.in_flight:
                await asyncio.sleep(_RETIRE_POLL_S)
    except TimeoutError:
        pass
    finally:
        link.close()


def _in_flight(link: Link) -> int:
    return link.in_flight
