"""When seats that have to be given back by some time (`time.monotonic()`; None: there are none) are due."""

from __future__ import annotations

import time

FORCE_EARLY_S = 0.5
"""So long before seats have to be given back, who still sits there is ended: the ledger would end the newest
seats of the node, whoever has them."""
LEAVE_MARGIN_S, LEAVE_MARGIN_STEPS = 3.0, 2.0
"""So long before seats have to be given back (the longer one), nobody waits any more for those who are to
take their place: the ranks stop after the next step but one at the latest, and commit."""


def is_late(leave_by: float | None, step_s: float) -> bool:
    """Whether they are due soon, for ranks whose steps take so long."""
    margin_s = max(LEAVE_MARGIN_S, LEAVE_MARGIN_STEPS * step_s)
    return leave_by is not None and time.monotonic() > leave_by - margin_s


def is_over(leave_by: float | None) -> bool:
    """Whether who has not left has to be ended."""
    return leave_by is not None and time.monotonic() >= leave_by - FORCE_EARLY_S
