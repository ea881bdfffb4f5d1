"""`Ticket`: a request that was let in, from its head to its last byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eagleray.serving.admission.refusal import Refusal

if TYPE_CHECKING:
    from eagleray.serving.admission.fair import Entry
    from eagleray.serving.admission.gate import Gate, Took
    from eagleray.serving.admission.limits import Account
    from eagleray.serving.keys import Key


class Ticket:
    """Made by `Admission.admit`, and to be closed, whatever happens: until then it counts as under way."""

    __slots__ = (
        "_tokens", "account", "began_s", "cost", "deadline_s", "entry", "foretold_s", "gate", "is_closed",
        "key", "on_end", "on_turn", "sent_s", "turn_s", "was_lost",
    )  # fmt: skip

    def __init__(self, account: Account, key: Key | None, now_s: float, deadline_s: float) -> None:
        self.account = account
        self.key = key
        """None: no key was needed, and none came."""
        self.began_s = now_s
        self.deadline_s = deadline_s
        """On the admission's clock."""
        self.cost = 1
        self.is_closed = False
        self.on_end: Callable[[Refusal], None] | None = None
        """Called, once, when the request is to end before its answer does: its key was revoked, its time in
        the queue is over. Who sets it closes the ticket."""
        self.on_turn: Callable[[Ticket], None] | None = None
        self.gate: Gate | None = None
        """Where it is under way, or waits."""
        self.entry: Entry[Ticket] | None = None
        """Where it waits."""
        self.sent_s = 0.0
        """When it had its turn; 0: it had not to wait for it."""
        self.turn_s = 0.0
        """When the text that it asks for was begun, be that at once; 0: not yet."""
        self.foretold_s = 0.0
        """How long it was to take from its turn on, where that was foretold."""
        self.was_lost = False
        """Whether a replica has begun the text in vain: it may be begun once more, and not twice."""
        self._tokens = 0

    def received(self, num_bytes: int) -> None:
        """So many bytes came that were not announced; or went out: the key pays for both."""
        self.account.settle_bytes(num_bytes)

    sent = received

    def reserve_tokens(self, number: int, now_s: float) -> Refusal | None:
        """Take the most tokens that the request can use; the refusal where the key has too few left."""
        refusal = self.account.refused_tokens(number, now_s)
        if refusal is None:
            self._tokens += number
        return refusal

    def used_tokens(self, number: int) -> None:
        """So many were used; what was reserved beyond is given back."""
        self.account.settle_tokens(number - self._tokens)
        self._tokens = number

    def answered(self, now_s: float, took: Took | None = None) -> None:
        """Its replica has answered: others may have their turn before this one's answer is written."""
        if (gate := self.gate) is not None:
            gate.answered(self, now_s, took)

    def text_ended(self, now_s: float) -> None:
        """As `answered`, for a whole text."""
        if (gate := self.gate) is not None:
            gate.text_ended(self, now_s)

    def end(self, refusal: Refusal) -> None:
        """Let the request end, for the reason given."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None and not self.is_closed:
            on_end(refusal)

    def close(self, now_s: float) -> None:
        """The request is over: it waits no longer, and counts no longer. Asked again, nothing happens."""
        if self.is_closed:
            return
        self.is_closed = True
        self.on_end = self.on_turn = None
        self.account.end(self, now_s - self.began_s)
        if (gate := self.gate) is not None:
            gate.leave(self, now_s)
