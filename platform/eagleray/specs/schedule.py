"""Floors by the time of day: "mon-fri 08:00-20:00 min 2", in a time zone that is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(
    r"(?:(?P<days>[a-z,-]+)\s+)?(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)\s+min\s+(?P<minimum>\d{1,4})"
)
_EXAMPLE = '"08:00-20:00 min 2" or "mon-fri 22:00-06:00 min 1"'


@dataclass(frozen=True)
class Schedule:
    """So many replicas at least, each day from one time to another."""

    text: str
    days: frozenset[int]
    """On which it begins; 0 is Monday."""
    start: int
    """Minutes since midnight."""
    end: int
    """Not above `start`: on the day after."""
    minimum: int

    def covers(self, local: datetime) -> bool:
        """Whether it holds at this local time."""
        minute = 60 * local.hour + local.minute
        today, before = local.weekday(), (local - timedelta(days=1)).weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        return (today in self.days and minute >= self.start) or (before in self.days and minute < self.end)


@lru_cache(maxsize=256)
def parse(text: str) -> Schedule:
    """The schedule that a line of a spec says. Raises: ValueError in words."""
    found = _FORM.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no schedule; write it as {_EXAMPLE}")
    start, end = _minutes(found["start"], text), _minutes(found["end"], text)
    if start == 24 * 60:
        raise ValueError(f"{text!r} begins at 24:00; write 00:00")
    return Schedule(text.strip(), _days(found["days"], text), start, end, int(found["minimum"]))


def _minutes(text: str, whole: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours > 24 or (hours == 24 and minutes):
        raise ValueError(f"{whole!r}: {text} is no time of day; write 00:00 to 24:00")
    return 60 * hours + minutes


def _days(text: str | None, whole: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise ValueError(f"{whole!r}: {part!r} is no day; write {', '.join(_DAYS)}, or mon-fri")
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        days |= {day % 7 for day in range(start, (end if end >= start else end + 7) + 1)}
    return frozenset(days)


def time_zone(name: str) -> ZoneInfo:
    """The time zone of this name. Raises: ValueError in words."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f'{name!r} is no time zone that is known here; write "Europe/Berlin" or "UTC"'
        ) from None


def floor_at(schedules: Sequence[str], zone: str, time_s: float) -> Schedule | None:
    """The schedule that asks for the most at this time (seconds since the epoch); None where none holds."""
    local = datetime.fromtimestamp(time_s, time_zone(zone))
    holding = [found for found in map(parse, schedules) if found.covers(local)]
    return max(holding, key=lambda found: found.minimum, default=None)
