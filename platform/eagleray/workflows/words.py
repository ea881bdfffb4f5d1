"""Numbers as people read them; light, so that the command line may use it."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """For instance "0:07" or "1:02:03"."""
    minutes, second = divmod(max(0, round(seconds)), 60)  # another host's clock may be ahead
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def count(number: int, noun: str) -> str:
    """For instance "1 node" or "3 nodes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
