"""Whose trace a request belongs to, and where its time went: `traceparent` and `Server-Timing`."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from eagleray.serving import ids

if TYPE_CHECKING:
    from eagleray.serving.link.frames import Timings

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class Trace(NamedTuple):
    """A request's place in a trace.

    Source: W3C Trace Context, level 1, section 3.2.
    """

    trace_id: str
    span_id: str
    """Of what is done here."""
    flags: str
    """Two hexadecimal digits; 01: who asks records this trace."""
    parent_id: str = ""
    """Of who asks; empty where the trace begins here."""

    @classmethod
    def of(cls, traceparent: str | None) -> Trace:
        """The place of a request with this header: in its trace, or at the begin of a new one."""
        found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent.strip())
        if found is not None:
            version, trace_id, parent_id, flags, more = found.groups()
            is_known = version != "ff" and (version != "00" or more is None)
            if is_known and trace_id != _NO_TRACE and parent_id != _NO_SPAN:
                return cls(trace_id, ids.fresh(8), flags, parent_id)
        fresh = ids.fresh(24)
        return cls(fresh[:32], fresh[32:], "00")

    @property
    def traceparent(self) -> str:
        """For whom we ask, and for the answer."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


class Watch:
    """What a request's time is spent on, one thing after the other, and its place in a trace."""

    __slots__ = ("_last_s", "spans_s", "trace")

    def __init__(self, traceparent: str | None = None) -> None:
        self.trace = Trace.of(traceparent)
        self.spans_s: dict[str, float] = {}
        """Seconds by name, in the order in which they began."""
        self._last_s = time.perf_counter()

    def mark(self, name: str) -> None:
        """What was done since the last mark was `name`."""
        now_s = time.perf_counter()
        self.spans_s[name] = self.spans_s.get(name, 0.0) + now_s - self._last_s
        self._last_s = now_s

    def mark_replica(self, timings: Timings | None = None) -> None:
        """What was done since the last mark was to ask a replica: its parts as it says, `link` for the rest.

        All of it is `replica` where it says nothing. A `queue` here comes before the replica's, and `encode`
        goes on here, with what writes the answer.
        """
        if timings is None:
            self.mark("replica")
            return
        now_s = time.perf_counter()
        spans_s, left_s = self.spans_s, now_s - self._last_s
        self._last_s = now_s
        queue_us, batch_us, infer_us, encode_us, _ = timings
        spans_s["link"] = max(0.0, left_s - 1e-6 * (queue_us + batch_us + infer_us + encode_us))
        spans_s["queue"] = spans_s.get("queue", 0.0) + 1e-6 * queue_us
        spans_s["batch"] = 1e-6 * batch_us
        spans_s["infer"] = 1e-6 * infer_us
        spans_s["encode"] = 1e-6 * encode_us

    def headers(self) -> dict[str, str]:
        """For the answer, whose last part is now there."""
        spans_s = self.spans_s
        self.mark("encode" if "link" in spans_s or "replica" in spans_s else "answer")
        timing = _form(tuple(spans_s)) % tuple([1e3 * seconds for seconds in spans_s.values()])
        return {"traceparent": self.trace.traceparent, "server-timing": timing}


@lru_cache(maxsize=64)
def _form(names: tuple[str, ...]) -> str:
    """Of a Server-Timing with these parts: to put each together anew takes half as long again."""
    return ", ".join(f"{name};dur=%.3f" for name in names)
