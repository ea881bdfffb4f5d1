"""`Window`: how much may be with the replicas at a time, found by how long it waits there."""

from __future__ import annotations

from collections.abc import Sequence

OPEN = 1 << 30
"""All: there is no replica that could have too much, and who starts one has to know of the requests."""
_STEP = 1.05
_QUICK_S = 0.0005
"""What waits no longer than this waits for a loop or a thread, and not for the model."""
_KEEPS = 0.99
_ALONE = 0.75
"""A smaller part of what one gateway sends to a replica in one of its batches: nobody else sends anything."""


class Window:
    """For one gateway, of all that ask the same replicas.

    It begins with what the replicas take at a time: two of their largest batches, one at work and one that
    gathers. While requests wait here it shrinks where they wait for more than two batches there, too, and
    grows where they wait for less than one; it is never less than two of the batches that were seen. It
    may have what other gateways do not send.
    """

    __slots__ = ("_each", "_most", "_num_gateways", "_peak", "replicas")

    def __init__(self) -> None:
        self.replicas = 0
        self._num_gateways = 1
        self._most = self._each = 0.0
        """Of one replica."""
        self._peak = 1.0
        """The largest batch lately."""

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

    def observe(self, waited_s: float, pass_s: float, batch: float) -> None:
        """Others waited here while one waited so long at its replica; its batch of so much took so long."""
        self._peak = max(float(batch), self._peak * _KEEPS)
        # One request may be larger than all that a replica takes at a time: then the next is to wait there.
        least = 2.0 * self._peak if self._peak > self._most else min(2.0 * self._peak, self._most)
        # Where others send, too, a batch is more than half of what is sent from here.
        is_alone = self._num_gateways > 1 and batch < _ALONE * self._each / self._num_gateways
        most = self._most * self._num_gateways if is_alone else self._most
        if waited_s > (2.0 if not self.is_borrowed else 1.5) * (pass_s + _QUICK_S):
            self._each = max(least, self._each / _STEP)
        elif waited_s < (1.25 if is_alone else 1.0) * (pass_s + _QUICK_S):
            self._each = max(least, min(max(most, self._each), self._each * _STEP))
        elif self._each < least:
            self._each = least
