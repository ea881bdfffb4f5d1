"""`Admission`: lets requests in or refuses them, in this order, each step in constant time.

Size (413), key (401, 403), its rate, tokens, bytes and concurrency (429), the deadline (503), the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eagleray.errors import AuthError, InputError
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.deadline import timeout_s
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.limits import Account
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.shares import Lease
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.keys import Key, KeyRing, Scope, WrongScope

NOBODY = ""
"""The id under which requests without a key are counted; no key has it."""
_NO_TERMS = KeyTerms()


@dataclass(slots=True)
class Head:
    """What is known of a request before its body is read."""

    authorization: str = ""
    num_bytes: int = 0
    """Of the body, as announced; 0 where that is not known."""
    model: str | None = None
    """Its name, where the path has it."""
    is_key_needed: bool = True
    """False where requests of this kind from there need none; a bad one is refused all the same."""
    timeout_ms: str | None = None
    """The client's header."""
    gate: Gate | None = None
    """Of the model version, where that is known and its requests wait here."""
    scope: Scope = "infer"


class Admission:
    """For one event loop."""

    def __init__(
        self,
        keys: KeyRing | None = None,
        *,
        max_body_bytes: int = 16 * 2**20,
        longest_s: float = 60.0,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`lease`: this gateway's part of all limits, where there are others; `longest_s`: for an answer."""
        self.keys = keys or KeyRing()
        self.max_body_bytes = max_body_bytes
        self.longest_s = longest_s
        self._lease = lease
        self._clock, self._wall = clock, wall
        self._accounts = {NOBODY: Account(NOBODY, "none", _NO_TERMS, 1.0, clock())}

    def admit(self, head: Head) -> Ticket | Refusal:
        """A ticket, to be closed; or why not."""
        if head.num_bytes > self.max_body_bytes:
            return too_large(self.max_body_bytes, f"it has {head.num_bytes}")
        try:
            key = self._identified(head)
            left_s = timeout_s(head.timeout_ms, self.longest_s)
        except WrongScope as error:
            return Refusal(403, str(error))
        except AuthError as error:
            return Refusal(401, str(error), {"www-authenticate": 'Bearer realm="eagleray"'})
        except InputError as error:
            return Refusal(400, str(error))
        now_s = self._clock()
        account = self._accounts.get(NOBODY if key is None else key.id)
        if account is None:
            assert key is not None
            account = self._open(key, now_s)
        refusal = account.refused(head.num_bytes, now_s)
        if refusal is None and head.gate is not None:
            refusal = head.gate.refused(account, left_s)
        if refusal is not None:
            return refusal
        ticket = Ticket(account, key, now_s, now_s + left_s)
        account.begin(ticket, head.num_bytes)
        return ticket

    def go_by(self, lease: Lease | None) -> None:
        """Use this part of every limit from now on; None: all of it."""
        self._lease = lease
        self.apply_shares()

    @property
    def lease(self) -> Lease | None:
        """This gateway's part of all limits; None where there is no other gateway."""
        return self._lease

    @property
    def has_limits(self) -> bool:
        """Whether any key has limits that gateways have to share."""
        return any(key.terms.has_limits for key in self.keys.keys.values())

    def take(self, keys: KeyRing) -> None:
        """Go by these keys from now on; open requests of keys that are gone, or have expired, end."""
        if keys is not self.keys:
            self.keys = keys
            now_s = self._clock()
            for key_id, account in list(self._accounts.items()):
                key = keys.keys.get(key_id)
                if key is not None:
                    account.change(key.terms, self._share(account), now_s)
                elif key_id != NOBODY:
                    del self._accounts[key_id]
                    _end(account, f"the API key {account.name!r} was revoked")
        self.end_expired()

    def end_expired(self) -> None:
        """End the open requests of keys whose time is over: to be called every second or so."""
        now_s = self._wall()
        for key_id, account in list(self._accounts.items()):
            key = self.keys.keys.get(key_id)
            if key is not None and account.open and key.is_expired(now_s):
                _end(account, f"the API key {key.name!r} expired on {key.expiry}")

    def demands(self) -> dict[str, float]:
        """What the keys with limits asked for since the last time, for the accountant; by id."""
        found = {
            key_id: account.take_demand() for key_id, account in self._accounts.items() if account.is_limited
        }
        return {key_id: demand for key_id, demand in found.items() if demand > 0.0}

    def apply_shares(self) -> None:
        """Go by what the lease says now: to be called when it has changed, or may have ended."""
        now_s = self._clock()
        for key_id, account in self._accounts.items():
            if account.is_limited and (share := self._share(account)) != account.share:
                account.change(self.keys.keys[key_id].terms, share, now_s)

    def _identified(self, head: Head) -> Key | None:
        if head.is_key_needed:
            key = self.keys.check(head.authorization, head.scope)
        else:
            key = self.keys.check_optional(head.authorization)
        if key is not None and head.model is not None:
            key.require_model(head.model)
        return key

    def _open(self, key: Key, now_s: float) -> Account:
        share = 1.0 if self._lease is None else self._lease.share(key.id, now_s)
        account = self._accounts[key.id] = Account(key.id, key.name, key.terms, share, now_s)
        return account

    def _share(self, account: Account) -> float:
        return 1.0 if self._lease is None else self._lease.share(account.key_id, self._clock())


def too_large(limit_bytes: int, found: str) -> Refusal:
    """413; `found` says how much larger."""
    return Refusal(413, f"the body is larger than {limit_bytes} bytes ({found}); send less at a time")


def _end(account: Account, why: str) -> None:
    refusal = Refusal(401, why, {"www-authenticate": 'Bearer realm="eagleray"'})
    open_tickets: Iterable[Ticket] = list(account.open)
    for ticket in open_tickets:
        ticket.end(refusal)
