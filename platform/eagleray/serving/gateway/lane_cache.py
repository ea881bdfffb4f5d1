"""`CachedCall`: a request of the fast lane to a version whose answers are kept."""

from __future__ import annotations

import time
from typing import Any

from eagleray.protocol import binary
from eagleray.serving.admission import deadline
from eagleray.serving.gateway import cache
from eagleray.serving.gateway.cache import Kept, Seat, Shelf
from eagleray.serving.gateway.lane_call import LaneCall
from eagleray.serving.ingress import coding
from eagleray.serving.ingress.http import Response


class CachedCall(LaneCall):
    """As its base, but that its answer may be there already, or be somebody else's who asks the same.

    A Waiter of the cache.
    """

    __slots__ = ("_ends_s", "_is_private", "_seat")

    def __init__(self, *arguments: Any, keep_alive: bool) -> None:
        super().__init__(*arguments, keep_alive=keep_alive)
        self._seat: Seat | None = None
        self._is_private = False
        self._ends_s = 0.0
        """When its patience ends, where it has waited for another's answer."""

    def take(self, kept: Kept) -> None:
        """Another's answer."""
        if not self._is_over:
            self._watch.mark("cache")
            self._guarded(self._give, kept, cache.SHARED)

    def go_on(self) -> None:
        """Ask the replica after all."""
        if self._is_over:
            return
        self._watch.mark("cache")
        if self._timer is not None:
            self._timer.cancel()
        self._guarded(super()._decode)

    def _decode(self) -> None:
        self._is_sent = True
        shelf = self._lane.app.cache.shelf(self._place.target)
        wishes = cache.wishes(self._headers.get("cache-control"))
        if shelf is None:
            super()._decode()
            return
        if wishes.is_private:
            shelf.count("bypassed")
            self._is_private = True
            super()._decode()
            return
        body = self._whole()
        header = self._headers.get(binary.HEADER, "")
        liked = coding.liked(self._headers.get("accept-encoding", "")) or ""
        if len(body) < cache.LONG_BYTES:
            self._look_up(shelf, shelf.key(body, header, liked), is_fresh=wishes.is_fresh)
        else:
            self._off_loop(
                lambda key: self._look_up(shelf, key, is_fresh=wishes.is_fresh),
                *(shelf.key, body, header, liked),
            )

    def _look_up(self, shelf: Shelf, key: bytes, *, is_fresh: bool) -> None:
        self._watch.mark("cache")
        if not is_fresh and (kept := shelf.find(key)) is not None:
            self._give(kept, cache.HIT)
            return
        seat = self._seat = shelf.alone(key, self) if is_fresh else shelf.join(key, self)
        if seat.is_leading:
            super()._decode()
        else:
            self._follow(seat)

    def _whole(self) -> bytes | bytearray | memoryview:
        """The body, which stays where it is."""
        if self._body is not None:
            return self._body.view
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def _follow(self, seat: Seat) -> None:
        """For the answer of who leads; without a slot, for those are few, and with no body of its own."""
        self._parts = [seat.shared(self._whole())]
        if self._body is not None:
            self._body.slot.release()
            self._body = None
        now_s = time.monotonic()
        self._wait_s = self._left_s(now_s)
        self._ends_s = self.until_s = now_s + self._wait_s
        self._lane.wait(self)
        if deadline.HEADER in self._headers:
            self._timer = self._lane.loop.call_later(self._wait_s, self.expire)

    def _left_s(self, now_s: float) -> float:
        return max(0.0, self._ends_s - now_s) if self._ends_s else super()._left_s(now_s)

    def _give(self, kept: Kept, status: str) -> None:
        headers = kept.headers_for(status)
        super()._succeed(Response(kept.body, media_type=kept.media_type, headers=headers))

    def _succeed(self, response: Response) -> None:
        if self._seat is not None:
            self._seat.keep(response)
        elif self._is_private:
            response.headers[cache.STATUS] = cache.REQUESTED
        super()._succeed(response)

    def _end(self, status: int, num_sent: int) -> None:
        if self._seat is not None:
            self._seat.leave()
        super()._end(status, num_sent)
