"""`Refusal`: why a request is not let in, and when it may come again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

RETRY_AT_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. 429: the key has used what it may; 503: there is more than can be served."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def retry_headers(wait_s: float) -> dict[str, str]:
    """When to come again. Whole seconds is what HTTP has; OpenAI's clients read the second header first."""
    wait_s = max(0.0, wait_s)
    return {"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def busy(message: str, wait_s: float) -> Refusal:
    """503: not now."""
    return Refusal(503, message, retry_headers(min(wait_s, RETRY_AT_MOST_S)))
