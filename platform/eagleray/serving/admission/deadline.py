"""How long a request will take, from what others took: one that would come too late is told so at once.

The time of a batch is taken to be a + c x batch, by least squares in which old batches count less and less.
"""

from __future__ import annotations

import re

from eagleray.errors import InputError

HEADER = "x-request-timeout-ms"
"""How long the client waits for its answer. Triton has a `timeout` in the body, in microseconds, and gRPC a
header of its own; neither can be read before the body is, or by HTTP's clients."""

_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")
_MARGIN = 1.1
"""Times vary: what is foretold is to hold for nearly all, not for every other one."""
_KEEPS = 0.98
"""What counted of the past after one batch more: the last fifty count."""


def timeout_s(header: str | None, longest_s: float) -> float:
    """What the client's header says, in seconds, or `longest_s` where that is less or it says nothing.

    Raises:
        InputError: it is no whole number of milliseconds above 0.
    """
    if header is None:
        return longest_s
    if not _MILLISECONDS.fullmatch(header):
        raise InputError(f"{HEADER}: expected whole milliseconds from 1 on, not {header[:40]!r}")
    return min(longest_s, int(header) / 1000)


class Forecast:
    """Times of one model version's batches, and what follows from them for who comes now."""

    __slots__ = (
        "_batch", "_batch_batch", "_batch_time", "_fixed_s", "_num", "_per_item_s", "_time", "max_batch",
        "replicas",
    )  # fmt: skip

    def __init__(self, *, replicas: int = 1, max_batch: int = 1) -> None:
        self.replicas = replicas
        self.max_batch = max_batch
        self._num = self._batch = self._batch_batch = self._time = self._batch_time = 0.0
        self._fixed_s = self._per_item_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return self._num > 0.0

    def observe(self, seconds: float, batch: int) -> None:
        """A batch of that many requests took so long."""
        keep = _KEEPS
        self._num = self._num * keep + 1.0
        self._batch = self._batch * keep + batch
        self._batch_batch = self._batch_batch * keep + batch * batch
        self._time = self._time * keep + seconds
        self._batch_time = self._batch_time * keep + batch * seconds
        spread = self._num * self._batch_batch - self._batch * self._batch
        if spread > 1e-6 * self._num * self._batch_batch:
            slope = (self._num * self._batch_time - self._batch * self._time) / spread
            # Neither part of the time can be negative: a batch is not quicker for being larger.
            slope = min(max(0.0, slope), self._time / self._batch)
            self._per_item_s = slope
            self._fixed_s = (self._time - slope * self._batch) / self._num
        else:
            self._fixed_s, self._per_item_s = 0.0, self._time / self._batch

    def answer_s(self, ahead: float) -> float:
        """Until one that comes now is answered, when so much goes before it or is under way; 0: unknown.

        All of a batch is answered at its end, and where there is a queue every batch is full by then.
        """
        each = ahead / self.replicas + 1.0
        batches = -(-each // self.max_batch)
        items = batches * self.max_batch if batches > 1.0 else each
        return (batches * self._fixed_s + items * self._per_item_s) * _MARGIN
