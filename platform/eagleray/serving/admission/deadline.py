"""How long a request will take, from what others took: one that would come too late is told so at once.

The time of a batch is taken to be a + c x batch, by least squares in which old batches count less and less.
"""

from __future__ import annotations

import re
from typing import Protocol

from eagleray.errors import InputError

HEADER = "x-request-timeout-ms"
"""How long the client waits for its answer. Triton has a `timeout` in the body, in microseconds, and gRPC a
header of its own; neither can be read before the body is, or by HTTP's clients."""

_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")
MARGIN = 1.25
"""Times vary: what is foretold is to hold for nearly all, not for every other one."""
_KEEPS = 0.98
"""What counted of the past after one batch more: the last fifty count."""
_PACE_OF = 30
_MOST_PACE = 50.0


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


class Foretells(Protocol):
    """What a gate knows of the time that requests take."""

    stretch: float
    """What `plain_s` says is to be taken so many times."""

    def arrange(self, replicas: float, window: int) -> None:
        """So many replicas are asked, and they may have so much at a time, in units of a plain request."""
        ...

    def plain_s(self, ahead: float) -> float:
        """Until one that comes now has what it waits for, when so much goes before it or is under way.

        0: nothing is known.
        """
        ...

    def observe(self, seconds: float, batch: float) -> None:
        """A batch of so much took so long."""
        ...

    def observe_text(self, seconds: float) -> None:
        """A whole text took so long from its turn on."""
        ...

    def correct(self, took_s: float, plain_s: float) -> None:
        """What was sent while others waited took so long, and `plain_s` had foretold that."""
        ...

    def relax(self) -> None:
        """An answer came while nothing waits: what was found of a crowd counts less from now on."""
        ...


class Forecast:
    """Times of one model version's batches, and what follows from them for who comes now.

    What a batch does not show (the way there and back, other gateways, a busy machine) is found by comparing:
    what was foretold for a request when it was sent, and what it took. Only those count that had waited,
    for then the replicas were as busy as they are for who waits now.
    """

    __slots__ = (
        "_batch", "_batch_batch", "_batch_time", "_fixed_s", "_num", "_pace", "_per_item_s", "_time",
        "max_batch", "replicas", "stretch",
    )  # fmt: skip

    def __init__(self, *, replicas: float = 1, max_batch: int = 1) -> None:
        self.replicas = replicas
        """That work for this gateway alone."""
        self.max_batch = max_batch
        self._num = self._batch = self._batch_batch = self._time = self._batch_time = 0.0
        self._fixed_s = self._per_item_s = 0.0
        self._pace = 1.0
        self.stretch = MARGIN

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return self._num > 0.0

    def arrange(self, replicas: float, window: int) -> None:
        """As Foretells: half of what a replica may have is a batch, and the other half waits for it."""
        self.replicas = replicas
        self.max_batch = max(1, round(window / replicas / 2))

    def observe(self, seconds: float, batch: float) -> None:
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

    def observe_text(self, seconds: float) -> None:
        """As Foretells: nothing that batches wait for."""

    def correct(self, took_s: float, plain_s: float) -> None:
        """As Foretells."""
        self._keep_pace(min(_MOST_PACE, took_s / plain_s))

    def relax(self) -> None:
        """As Foretells: else who was refused for a crowd of long ago would never wait, and correct that."""
        if self._pace > 1.0:
            self._keep_pace(1.0)

    def _keep_pace(self, pace: float) -> None:
        self._pace += (pace - self._pace) / _PACE_OF
        self.stretch = MARGIN * max(1.0, self._pace)

    def plain_s(self, ahead: float) -> float:
        """As Foretells, by what batches take alone.

        All of a batch is answered at its end, and where there is a queue every batch is full by then.
        """
        each = ahead / self.replicas + 1.0
        batches = -(-each // self.max_batch)
        items = batches * self.max_batch if batches > 1.0 else each
        return batches * self._fixed_s + items * self._per_item_s

    def answer_s(self, ahead: float) -> float:
        """Until one that comes now is answered, when so much goes before it or is under way; 0: unknown."""
        return self.plain_s(ahead) * self.stretch


class TextForecast:
    """How long a text waits until it is begun: its first piece is what its client has a time for.

    By Little's law: with a window that is always full, one text ends in each window's part of a text's time.
    """

    __slots__ = ("_num", "_text_s", "stretch", "window")

    def __init__(self, *, window: int = 1) -> None:
        self.window = window
        self.stretch = MARGIN
        self._num = 0
        self._text_s = 0.0

    def arrange(self, replicas: float, window: int) -> None:
        """As Foretells."""
        self.window = window

    def observe(self, seconds: float, batch: float) -> None:
        """As Foretells: nothing that texts wait for."""

    def observe_text(self, seconds: float) -> None:
        """As Foretells."""
        self._num = min(_PACE_OF, self._num + 1)
        self._text_s += (seconds - self._text_s) / self._num

    def correct(self, took_s: float, plain_s: float) -> None:
        """As Foretells: what was observed is true already."""

    def relax(self) -> None:
        """As Foretells: nothing is found of crowds."""

    def plain_s(self, ahead: float) -> float:
        """As Foretells."""
        return max(0.0, ahead + 1.0 - self.window) * self._text_s / self.window
