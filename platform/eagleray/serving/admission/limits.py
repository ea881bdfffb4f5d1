"""`Account`: what one key uses of its limits on one gateway.

Source of the headers' names: the API of GitHub, and of most that came after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagleray.protocol.key_terms import KeyTerms, Priority
from eagleray.serving.admission.buckets import Bucket
from eagleray.serving.admission.refusal import RETRY_AT_MOST_S, Refusal, retry_headers

if TYPE_CHECKING:
    from eagleray.serving.admission.ticket import Ticket

BURST_S = 0.25
"""Of its rate a key may use at once, where nothing else is said: 10 s then see at most 1.025 x the limit."""
_SHORTEST_S = 0.05
_MEAN_OF = 10
"""The mean time of a request is that of about so many."""


class Account:
    """Buckets, and the requests that are under way; for one event loop."""

    __slots__ = (
        "_bytes", "_mean_s", "_offered_bytes", "_offered_requests", "_offered_tokens", "_requests",
        "_terms", "_tokens", "key_id", "name", "open", "priority", "share", "weight",
    )  # fmt: skip

    def __init__(self, key_id: str, name: str, terms: KeyTerms, share: float, now_s: float) -> None:
        """`share`: of the key's limits, on this gateway."""
        self.key_id = key_id
        self.name = name
        self.open: dict[Ticket, None] = {}
        """In the order in which they came."""
        self._mean_s = 0.1
        self._offered_requests = self._offered_tokens = self._offered_bytes = 0.0
        self._requests = self._tokens = self._bytes = None
        self.change(terms, share, now_s)

    def change(self, terms: KeyTerms, share: float, now_s: float) -> None:
        """Go on under other terms, or with another share of them."""
        self._terms, self.share = terms, share
        self.weight = terms.weight
        self.priority: Priority = terms.priority
        rate = terms.requests_per_s
        burst = 0.0 if rate is None else max(1.0, rate * BURST_S) if terms.burst is None else terms.burst
        # A bucket of less than one request would never let one in.
        self._requests = _changed(self._requests, rate, max(1.0, burst * share), share, now_s)
        self._tokens = _changed(self._tokens, terms.tokens_per_s, None, share, now_s)
        self._bytes = _changed(self._bytes, terms.bytes_per_s, None, share, now_s)

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit that gateways have to share."""
        return self._terms.has_limits

    def refused(self, num_bytes: int, now_s: float) -> Refusal | None:
        """Why a request with a body of so many bytes may not begin; None where it may. Nothing is taken."""
        self._offered_requests += 1.0
        self._offered_bytes += num_bytes
        if (bucket := self._requests) is not None and not bucket.has(1.0, now_s):
            return self._empty("requests", self._terms.requests_per_s, bucket, 1.0, now_s)
        if (bucket := self._tokens) is not None and not bucket.has(1.0, now_s):
            return self._empty("tokens", self._terms.tokens_per_s, bucket, 1.0, now_s)
        if (bucket := self._bytes) is not None and not bucket.has(num_bytes or 1.0, now_s):
            return self._empty("bytes", self._terms.bytes_per_s, bucket, num_bytes or 1.0, now_s)
        if self._terms.concurrency is not None and len(self.open) >= self._most_open:
            return self._full(self._terms.concurrency)
        return None

    def begin(self, ticket: Ticket, num_bytes: int) -> None:
        """Take what `refused` has found to be there."""
        if self._requests is not None:
            self._requests.take(1.0)
        if self._bytes is not None:
            self._bytes.take(num_bytes)
        self.open[ticket] = None

    def end(self, ticket: Ticket, seconds: float) -> None:
        """The request is answered, or given up. Asked again, nothing happens."""
        if self.open.pop(ticket, self) is None:
            self._mean_s += (seconds - self._mean_s) / _MEAN_OF

    def refused_tokens(self, number: float, now_s: float) -> Refusal | None:
        """Why a request may not reserve so many tokens; None where it has now taken them."""
        self._offered_tokens += number
        if (bucket := self._tokens) is None:
            return None
        if not bucket.has(number, now_s):
            return self._empty("tokens", self._terms.tokens_per_s, bucket, number, now_s)
        bucket.take(number)
        return None

    def settle_tokens(self, number: float) -> None:
        """Take tokens that were used and not reserved; below zero: give back those that were not used."""
        _settle(self._tokens, number)

    def settle_bytes(self, number: float) -> None:
        """As `settle_tokens`, for bytes."""
        _settle(self._bytes, number)

    def state(self, now_s: float) -> dict[str, str]:
        """The limit of requests as headers, for an answer; empty where there is none."""
        if self._requests is None or self._terms.requests_per_s is None:
            return {}
        return _headers("requests", self._terms.requests_per_s, self._requests, now_s)

    def take_demand(self) -> float:
        """What was asked for since the last time, refused or not, as seconds of the tightest limit."""
        terms = self._terms
        demand = max(
            self._offered_requests / (terms.requests_per_s or float("inf")),
            self._offered_tokens / (terms.tokens_per_s or float("inf")),
            self._offered_bytes / (terms.bytes_per_s or float("inf")),
            0.0 if terms.concurrency is None else self._offered_requests * self._mean_s / terms.concurrency,
        )
        self._offered_requests = self._offered_tokens = self._offered_bytes = 0.0
        return demand

    @property
    def _most_open(self) -> int:
        assert self._terms.concurrency is not None
        return max(1, int(self._terms.concurrency * self.share + 1e-9))

    def _empty(self, what: str, limit: float | None, bucket: Bucket, amount: float, now_s: float) -> Refusal:
        assert limit is not None
        # A gateway to which few requests came so far has a small share of the limit. It gets more within two
        # questions to the accountant, now that they come here: half of it is a better guess than what it has.
        wait_s = min(bucket.missing(amount, now_s) / max(bucket.rate, limit / 2), RETRY_AT_MOST_S)
        said = f"the API key {self.name!r} may use {limit:g} {what} a second and has"
        message = f"{said}; try again in {wait_s:.3g} s"
        return Refusal(429, message, {**retry_headers(wait_s), **_headers(what, limit, bucket, now_s)})

    def _full(self, limit: int) -> Refusal:
        wait_s = max(_SHORTEST_S, self._mean_s / self._most_open)
        message = (
            f"the API key {self.name!r} may have {limit} requests under way and has; wait for one of them"
        )
        headers = {
            "x-ratelimit-resource": "concurrency",
            "x-ratelimit-limit": str(limit),
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": f"{min(wait_s, RETRY_AT_MOST_S):.3f}",
        }
        return Refusal(429, message, {**retry_headers(wait_s), **headers})


def _changed(
    bucket: Bucket | None, rate: float | None, capacity: float | None, share: float, now_s: float
) -> Bucket | None:
    """The bucket with another rate, a new one, or none where there is no limit."""
    if rate is None:
        return None
    capacity = max(1.0, rate * BURST_S * share) if capacity is None else capacity
    if bucket is None:
        return Bucket(rate * share, capacity, now_s)
    bucket.change(rate * share, capacity, now_s)
    return bucket


def _settle(bucket: Bucket | None, number: float) -> None:
    if bucket is None:
        return
    if number > 0.0:
        bucket.take(number)
    elif number < 0.0:
        bucket.give(-number)


def _headers(what: str, limit: float, bucket: Bucket, now_s: float) -> dict[str, str]:
    level = bucket.level(now_s)
    full_s = min(bucket.wait_s(bucket.capacity, now_s), 1e6) if level < bucket.capacity else 0.0
    return {
        "x-ratelimit-resource": what,
        "x-ratelimit-limit": f"{limit:.12g}",
        "x-ratelimit-remaining": str(max(0, int(level + 1e-9))),
        "x-ratelimit-reset": f"{full_s:.3f}",
    }
