"""`Accounts`: the controller's accountant, which lends each gateway its part of every key's limits.

It is the controller's and no actor of its own: the controller knows how many gateways there are, a question
takes it 3 us for each key in use, and gateways go on by 1/N of each limit while it is away, whoever it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from eagleray.serving.admission.shares import FORGET_S, Accountant, Grant, Held
from eagleray.serving.lookout import Lookout


class Accounts:
    """For one event loop.

    Args:
        num_gateways: How many there are to be now.
        is_gone: Whether the gateway of that name has ended, as far as can be known; it may block.
    """

    def __init__(
        self,
        num_gateways: Callable[[], int],
        is_gone: Callable[[str], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_gateways, self._clock = num_gateways, clock
        self._accountant: Accountant | None = None
        self._asked_s = 0.0
        self._lookout = Lookout(is_gone, self.leave, clock=clock)
        """One that is cut off keeps what it may go by."""

    def renew(self, name: str, held: Mapping[str, Any], demands: Mapping[str, float]) -> dict[str, Any]:
        """`Accountant.renew` in plain values."""
        now_s = self._clock()
        if self._accountant is None or now_s - self._asked_s > FORGET_S:
            # None asked for long, and what they go by since then is not known: as after a restart.
            self._accountant = Accountant(self._num_gateways(), clock=self._clock)
        self._asked_s = now_s
        grant = self._accountant.renew(name, held_of(held), demands)
        self._lookout.look(self._accountant.silent())
        return grant_to_json(grant)

    def leave(self, name: str) -> None:
        """The gateway of that name has ended: what it held is free."""
        if self._accountant is not None:
            self._accountant.leave(name)


def grant_to_json(grant: Grant) -> dict[str, Any]:
    """Plain values, for another process."""
    return {"default": grant.default, "shares": dict(grant.shares)}


def grant_of(values: Mapping[str, Any]) -> Grant:
    """What `grant_to_json` gave."""
    return Grant(values["default"], values["shares"])


def held_to_json(held: Held) -> dict[str, Any]:
    """Plain values, for another process."""
    now = grant_to_json(held.now)
    return {"now": now} if held.most is held.now else {"now": now, "most": grant_to_json(held.most)}


def held_of(values: Mapping[str, Any]) -> Held:
    """What `held_to_json` gave."""
    now = grant_of(values["now"])
    return Held(now, grant_of(values["most"]) if "most" in values else now)
