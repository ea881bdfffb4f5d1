"""`Window`: how much may be with the replicas at a time, found by how long it waits there."""

from __future__ import annotations

from collections.abc import Sequence

OPEN = 1 << 30
"""All: there is no replica that could have too much, and who starts one has to know of the requests."""
_STEP = 1.05
_QUICK_S = 0.0005
"""What waits no longer than this waits for a loop or a thread, and not for the model."""
_KEEPS = 0.99
_MEAN_OF = 16
"""Answers of which means are taken: what was sent may go in one large batch and one small one, of which the
small one waits for the large."""
_FULL = 0.99
"""What a mean batch has, of the largest one, where all that may be there is there."""
_MORE, _LESS = 0.002, 0.005
"""What is borrowed or given back with an answer: of what a replica takes, and of what is had."""


class Window:
    """For one gateway, of all that ask the same replicas.

    It begins with what the replicas take at a time: two of their largest batches, one at work and one that
    gathers. While requests wait here it shrinks where they wait for more than two batches there, too, and
    grows where they wait for less than one; it is never less than two of the batches that were seen.

    Of several gateways each has its part of that. Where batches are not full, others do not send theirs: it
    may be borrowed. Who borrows takes more by steps of one size, and gives back a part of what he has as soon
    as batches are full: so those that are busy come to have as much of it (Chiu and Jain 1989).
    """

    __slots__ = ("_batch", "_each", "_most", "_num_gateways", "_pass_s", "_peak", "_waited_s", "replicas")

    def __init__(self) -> None:
        self.replicas = 0
        self._num_gateways = 1
        self._most = self._each = 0.0
        """Of one replica."""
        self._peak = 1.0
        """The largest batch lately."""
        self._batch = self._waited_s = self._pass_s = 0.0
        """Means."""

    @property
    def size(self) -> int:
        """In units of a plain request."""
        if not self.replicas:
            return OPEN
        return max(1, round(self._each * self.replicas / self._num_gateways))

    @property
    def own_replicas(self) -> float:
        """As many as this gateway may count on."""
        borrowed = self._each / self._most if self.is_borrowed else 1.0
        return min(float(self.replicas), self.replicas / self._num_gateways * borrowed)

    @property
    def is_borrowed(self) -> bool:
        """Whether it is more than this gateway's part, which others may want back."""
        return self._num_gateways > 1 and self._each > self._most

    def arrange(self, max_ongoing: Sequence[int], num_gateways: int) -> None:
        """These replicas run, which take so many requests at a time, and so many gateways share them."""
        self.replicas, self._num_gateways = len(max_ongoing), max(1, num_gateways)
        self._each = min(self._each, max(self._most * self._num_gateways, 2.0 * self._peak))
        if not max_ongoing:
            return
        most = sum(max_ongoing) / len(max_ongoing)
        if most != self._most:
            self._most = self._each = most

    def observe(self, waited_s: float, pass_s: float, batch: float, *, is_wanted: bool = True) -> None:
        """One request waited so long at its replica, and its batch of so much took so long.

        `is_wanted`: others waited here meanwhile.
        """
        self._peak = max(float(batch), self._peak * _KEEPS)
        part = 1.0 / _MEAN_OF if self._batch else 1.0
        self._batch += (batch - self._batch) * part
        self._waited_s += (waited_s - self._waited_s) * part
        self._pass_s += (pass_s - self._pass_s) * part
        if self._num_gateways > 1:
            waited_s, pass_s = self._waited_s, self._pass_s
        # One request may be larger than all that a replica takes at a time: then the next is to wait there.
        least = 2.0 * self._peak if self._peak > self._most else min(2.0 * self._peak, self._most)
        if waited_s > 2.0 * (pass_s + _QUICK_S):
            self._each = max(least, self._each / _STEP)
        elif self._num_gateways > 1 and self._each >= self._most:
            self._borrow(max(least, self._most), is_wanted)
        elif waited_s < pass_s + _QUICK_S:
            self._each = max(least, min(max(self._most, self._each), self._each * _STEP))
        elif self._each < least:
            self._each = least

    def _borrow(self, least: float, is_wanted: bool) -> None:
        """Take some of what others do not send, or give some back."""
        if self._batch >= _FULL * self._most / 2.0:
            self._each = max(least, self._each * (1.0 - _LESS))
        elif is_wanted:
            whole = self._most * self._num_gateways
            more = min(_MORE * whole * whole / self._each, self._each)  # an answer's part of one step
            self._each = max(least, min(whole, self._each + more))
