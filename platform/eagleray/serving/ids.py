"""Ids of requests and spans: they do not meet again, and are no secrets: none takes a system call."""

from __future__ import annotations

import os
import random
import secrets

_random = random.Random()


def _seed() -> None:
    _random.seed(secrets.randbits(256))


_seed()
os.register_at_fork(after_in_child=_seed)


def fresh(num_bytes: int) -> str:
    """So many random bytes, as hexadecimal digits."""
    return f"{_random.getrandbits(8 * num_bytes):0{2 * num_bytes}x}"
