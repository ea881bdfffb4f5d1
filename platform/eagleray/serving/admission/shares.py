"""A key's limits over several gateways: an accountant lends each of them a share, by what is asked for there.

Every gateway asks about ten times a second (`Accountant.renew`), and obeys what it was lent until `LEASE_S`
after it asked (`Lease`). For each key the shares that gateways go by never sum to more than 1, however long
an answer takes: one grows only after another has shrunk, and said so with its next question. So where the
buckets hold a quarter of a second of the rate, any 10 s see at most 1.025 x the limit, and one request more
for each gateway: no bucket is smaller than a request. Below 4 requests a second and gateway that one can be
more than 5 %.

Of requests at a time each gateway may have its share, and one at least.

A key that rests has 1/N of its limits on each of N gateways, so that its first requests need no question.
When they come, 1 % stays where none do, and the rest goes where they come: within three questions, 0.3 s; in
a second where they came elsewhere before.

While the accountant is away, a gateway goes by its last shares for `LEASE_S`, then by 1/N of each limit: less
at once, more only when `GROW_S` are over, for until then others may go by what it has left. So the sum stays
1 at most. One gateway that is cut off alone keeps its 1/N for good, and the accountant leaves it that for
`FORGET_S`; after that the others may use the whole, and the limit can be exceeded by 1/N until it is back. An
accountant that starts anew lets nothing grow for `LEASE_S`, in which it hears from the gateways what they go
by, and leaves those that it has not heard from their 1/N for `FORGET_S`.

Every `PERIOD_S` a gateway does this, and the last step also where the accountant did not answer:

    asked_s, held = now(), lease.held(now())
    lease.take(await accountant.renew(name, held, admission.demands()), asked_s)
    admission.apply_shares()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

PERIOD_S = 0.1
"""Between two questions of one gateway."""
LEASE_S = 1.0
GROW_S = 3 * LEASE_S
"""The question may have been heard and its answer lost: then the accountant takes the gateway for live for
`LEASE_S`, and what it lent to others until then lasts `LEASE_S` more. The last answer may be as old again."""
FORGET_S = 30.0
IDLE_S = 10.0
"""Without a request anywhere a key rests again."""
FLOOR = 0.01
_MEMORY = 0.7
"""What counts of the demand before in the demand now, from question to question."""
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Grant:
    """What one gateway is lent."""

    default: float = 0.0
    """Of each limit of a key that is not in `shares`."""
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    """By key."""

    def of(self, key_id: str) -> float:
        """The part of this key's limits."""
        return self.shares.get(key_id, self.default)


@dataclass(frozen=True, slots=True)
class Held:
    """What one gateway goes by."""

    now: Grant = field(default_factory=Grant)
    most: Grant = field(default_factory=Grant)
    """Until its question is answered."""


class Lease:
    """What this gateway may use of every key's limits."""

    def __init__(self, num_gateways: int, now_s: float) -> None:
        """`num_gateways`: how many there are, for a time without an accountant; nothing is lent yet."""
        self._grant: Grant | None = None
        self._without = 1.0 / num_gateways
        self._asked_s = now_s

    def expect(self, num_gateways: int) -> None:
        """There are so many now."""
        self._without = 1.0 / num_gateways

    def take(self, grant: Grant, asked_s: float) -> None:
        """Go by this from now on; `asked_s` is when the question was sent: it ends by then + `LEASE_S`."""
        self._grant, self._asked_s = grant, asked_s

    def share(self, key_id: str, now_s: float) -> float:
        """This gateway's part of a key's limits."""
        age_s, grant = now_s - self._asked_s, self._grant
        if grant is None:
            return self._without if age_s > GROW_S else 0.0
        share = grant.of(key_id)
        if age_s <= LEASE_S:
            return share
        return min(share, grant.default) if age_s <= GROW_S else grant.default

    def is_whole(self, now_s: float) -> bool:
        """Whether this gateway may use all of every limit: nobody else goes by a part."""
        grant, age_s = self._grant, now_s - self._asked_s
        if grant is None or age_s > LEASE_S:
            return False
        return min(grant.default, *grant.shares.values(), 1.0) >= 1.0 - _SAME

    def held(self, now_s: float) -> Held:
        """What this gateway goes by, for the next question."""
        age_s, grant = now_s - self._asked_s, self._grant
        if grant is not None and age_s <= LEASE_S:
            return Held(grant, grant)
        most = Grant(self._without if grant is None else grant.default)
        if age_s > GROW_S:
            return Held(most, most)
        if grant is None:
            return Held(Grant(), most if age_s > LEASE_S else Grant())
        return Held(
            Grant(grant.default, {key_id: self.share(key_id, now_s) for key_id in grant.shares}), most
        )


class Accountant:
    """Knows every gateway's shares and demands. One for all of them; `renew` may be called from anywhere."""

    def __init__(self, num_gateways: int = 1, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`num_gateways`: how many there are to be; one that is not heard from may be cut off, and admit."""
        self._clock = clock
        self._started_s = clock()
        self._num_gateways = self._num_missing = num_gateways
        self._gateways: dict[str, _Gateway] = {}
        self._keys: dict[str, _Key] = {}

    def renew(self, name: str, held: Held, demands: Mapping[str, float]) -> Grant:
        """What the gateway of that name is lent from now on.

        Args:
            name: A name of its own.
            held: What it goes by.
            demands: By key, what was asked for there since its last question, as seconds of the limit.
        """
        now_s = self._clock()
        gateway = self._gateways.get(name)
        if gateway is None:
            gateway = self._gateways[name] = _Gateway(now_s - PERIOD_S)
            self._num_missing = max(0, self._num_missing - 1)
            for key_id in (*held.now.shares, *held.most.shares):
                self._key(key_id, now_s)
        elapsed_s = max(now_s - gateway.heard_s, 1e-3)
        gateway.heard_s = now_s
        self._forget(now_s)
        for key_id, demand in demands.items():
            key = self._key(key_id, now_s)
            key.wanted_s = now_s
            key.demands[name] = key.demands.get(name, 0.0) * _MEMORY + demand / elapsed_s * (1.0 - _MEMORY)
        may_grow = now_s - self._started_s >= LEASE_S
        default = self._lend_default(name, gateway, held, may_grow)
        silent = self.silent()
        shares: dict[str, float] = {}
        for key_id, key in list(self._keys.items()):
            if key_id not in demands and name in key.demands:
                key.demands[name] *= _MEMORY
            is_resting = now_s - key.wanted_s > IDLE_S
            wanted = default if is_resting else self._wanted(key, name, silent, default)
            lent = min(wanted, self._free(key, name, silent))
            lent = max(0.0, lent if may_grow else min(lent, held.now.of(key_id)))
            # Until it asks again it may go by either: the answer has still to come there.
            key.held[name] = max(lent, held.most.of(key_id))
            if is_resting and self._is_at_rest(key):
                del self._keys[key_id]
            else:
                shares[key_id] = lent
        return Grant(default, shares)

    def silent(self) -> list[str]:
        """Gateways that have not asked for longer than their leases last."""
        now_s = self._clock()
        return [name for name, known in self._gateways.items() if now_s - known.heard_s > LEASE_S]

    def leave(self, name: str) -> None:
        """The gateway of that name admits nothing any more: what it held is free."""
        self._gateways.pop(name, None)
        for key in self._keys.values():
            key.held.pop(name, None)
            key.demands.pop(name, None)

    def _key(self, key_id: str, now_s: float) -> _Key:
        key = self._keys.get(key_id)
        if key is None:
            key = self._keys[key_id] = _Key(now_s)
        return key

    def _forget(self, now_s: float) -> None:
        for name in [name for name, known in self._gateways.items() if now_s - known.heard_s > FORGET_S]:
            self.leave(name)
        if now_s - self._started_s > FORGET_S:
            self._num_missing = 0

    @property
    def _kept_for_missing(self) -> float:
        return self._num_missing / self._num_gateways

    def _lend_default(self, name: str, gateway: _Gateway, held: Held, may_grow: bool) -> float:
        """The gateway's part of the limits of keys that rest."""
        others = sum(known.default for other, known in self._gateways.items() if other != name)
        kept = self._kept_for_missing
        lent = min((1.0 - kept) / len(self._gateways), 1.0 - kept - others)
        lent = max(0.0, lent if may_grow else min(lent, held.now.default))
        gateway.default = max(lent, held.most.default)
        return lent

    def _wanted(self, key: _Key, name: str, silent: Sequence[str], default: float) -> float:
        """The gateway's part of a key's limits, by what is asked for there and elsewhere."""
        demand = sum(key.demands.get(other, 0.0) for other in self._gateways if other not in silent)
        if demand <= 0.0:
            return default
        num_live = len(self._gateways) - len(silent)
        free = 1.0 - self._kept_for_missing - sum(self._gateways[other].default for other in silent)
        floor = min(FLOOR, 1.0 / num_live)
        return free * (floor + (1.0 - num_live * floor) * key.demands.get(name, 0.0) / demand)

    def _free(self, key: _Key, name: str, silent: Sequence[str]) -> float:
        """What no other gateway goes by, of a key's limits."""
        for other in silent:  # it comes down, or up, to that by itself
            key.held[other] = self._gateways[other].default
        others = sum(
            key.held.get(other, known.default) for other, known in self._gateways.items() if other != name
        )
        return 1.0 - self._kept_for_missing - others

    def _is_at_rest(self, key: _Key) -> bool:
        """Whether every gateway goes by what it would without a share of its own for this key."""
        return all(
            abs(key.held.get(name, known.default) - known.default) <= _SAME
            for name, known in self._gateways.items()
        )


@dataclass(slots=True)
class _Gateway:
    heard_s: float
    default: float = 0.0
    """The most that it goes by for keys that rest."""


@dataclass(slots=True)
class _Key:
    wanted_s: float
    """When it was last asked for."""
    held: dict[str, float] = field(default_factory=dict[str, float])
    """By gateway, the most that it goes by; where one is not here, its default."""
    demands: dict[str, float] = field(default_factory=dict[str, float])
    """By gateway, in times the limit."""
