"""What replicas tell Serve's controller of themselves, and what it reads from that: both ends of one record.

Serve asks each replica every 0.6 s, and hands what it said to the policy within a second. It is asked apart
from the requests, so it counts those, too, that come past Serve. What never reaches a replica the gateways
tell (`gateway.telling_ray260`); that is read here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eagleray.serving.rates import Count
from eagleray.serving.replica.fit import Line

_PREFIX = "eagleray_"
ARRIVED, QUEUED_TEXTS = _PREFIX + "arrived", _PREFIX + "queued_texts"
"""Of gateways: predictions asked for so far, and texts that wait there."""


class _Batcher(Protocol):
    """Of `replica.batcher`."""

    num_waiting: int

    @property
    def counts(self) -> Any:
        """Of `replica.counts`."""
        ...


class Point(Protocol):
    """A value and when it was."""

    @property
    def timestamp(self) -> float:
        """Seconds since the epoch, by the replica's clock."""
        ...

    @property
    def value(self) -> float:
        """As it was then."""
        ...


def stated(batcher: _Batcher, line: Line | None, num_texts: int, now_s: float) -> dict[str, float]:
    """What a replica says: what Serve's `record_autoscaling_stats` returns.

    Args:
        batcher: Of its predictions.
        line: What a forward pass takes, if that is known.
        num_texts: Under way.
        now_s: By the batcher's clock.
    """
    counts, p95_s = batcher.counts, batcher.counts.p95_s(now_s)
    found = {
        "requests": counts.requests,
        "came": counts.came,
        "done": counts.done,
        "waiting": batcher.num_waiting,
        "under_way": counts.requests - counts.ended + num_texts,
        "texts": num_texts,
    }
    if line is not None:
        found |= {"fixed_s": line.fixed_s, "per_sample_s": line.per_sample_s}
    if p95_s is not None:
        found |= {"p95_s": p95_s[0], "waited_s": p95_s[1]}
    return {_PREFIX + name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Signals:
    """What all replicas of a service have said."""

    came: Mapping[str, Count] = field(default_factory=dict)
    done: Mapping[str, Count] = field(default_factory=dict)
    per_request: float = 1.0
    """Samples."""
    waiting: float = 0.0
    """Samples."""
    under_way: float = 0.0
    """Requests, over the last seconds."""
    texts: float = 0.0
    """The same, of texts alone."""
    line: Line | None = None
    p95_s: float | None = None
    waited_s: float = 0.0


def read(raw: Mapping[str, Mapping[Any, Sequence[Point]]]) -> Signals:
    """The signals in what Serve has of the replicas: by name and replica, the points of the last seconds."""

    def series(name: str) -> dict[str, Sequence[Point]]:
        found = raw.get(_PREFIX + name) or {}
        return {str(replica): points for replica, points in found.items() if points}

    def last(name: str) -> dict[str, float]:
        return {replica: points[-1].value for replica, points in series(name).items()}

    came, done = _counts(series("came")), _counts(series("done"))
    weights = {replica: 1.0 + count.last - count.first for replica, count in came.items()}
    requests = sum(last("requests").values())
    fixed_s, per_sample_s = _mean(last("fixed_s"), weights), _mean(last("per_sample_s"), weights)
    line = None if fixed_s is None or per_sample_s is None else Line(fixed_s, per_sample_s)
    return Signals(
        came=came,
        done=done,
        per_request=sum(last("came").values()) / requests if requests else 1.0,
        waiting=sum(last("waiting").values()),
        under_way=sum(map(_level, series("under_way").values())),
        texts=sum(map(_level, series("texts").values())),
        line=line,
        p95_s=_mean(last("p95_s"), weights),
        waited_s=_mean(last("waited_s"), weights) or 0.0,
    )


@dataclass(frozen=True)
class Told:
    """What all gateways have said of a service."""

    arrived: Mapping[str, Count] = field(default_factory=dict)
    """Predictions asked for, by gateway; of those that were turned away, too."""
    texts: float = 0.0
    """Texts that wait in gateways."""


def read_told(reports: Iterable[Mapping[str, Mapping[str, Sequence[Point]]]]) -> Told:
    """What gateways have said, in the reports that Serve has of them: points by name and gateway."""
    arrived: dict[str, Count] = {}
    texts = 0.0
    for report in reports:
        arrived |= _counts({name: points for name, points in report.get(ARRIVED, {}).items() if points})
        texts += sum(points[-1].value for points in report.get(QUEUED_TEXTS, {}).values() if points)
    return Told(arrived, texts)


def _counts(found: Mapping[str, Sequence[Point]]) -> dict[str, Count]:
    return {
        replica: Count(points[0].timestamp, points[0].value, points[-1].timestamp, points[-1].value)
        for replica, points in found.items()
    }


def _level(points: Sequence[Point]) -> float:
    return sum(point.value for point in points) / len(points)


def _mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """Of the replicas that said it, each by what came to it; None where none did."""
    total = sum(weights.get(replica, 1.0) for replica in values)
    return (
        sum(value * weights.get(replica, 1.0) for replica, value in values.items()) / total
        if values
        else None
    )
