"""The ingress's own counters, as Prometheus text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from eagleray.metrics import INGRESS_TABLE, Metric
from eagleray.serving.gateway.cache import ResponseCache

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS_S = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

NO_ROUTE = "(none)"
"""Label of requests that found no route: paths that strangers try are no labels."""

_BOUNDS = (*(f"{bound:g}" for bound in BUCKETS_S), "+Inf")
_Labels = tuple[str, ...]
_Values = Iterable[tuple[_Labels, float]]
_NO_PARTS: Mapping[str, float] = {}


class _Times:
    """A histogram."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0


class _Row:
    """Of one route of one model version."""

    __slots__ = ("codes", "parts", "received", "sent", "times")

    def __init__(self, parts: dict[str, _Times]) -> None:
        self.codes: dict[int, int] = {}
        self.received = self.sent = 0
        self.times = _Times()
        self.parts = parts
        """Shared by all routes of the version."""


class IngressMetrics:
    """Counts of one ingress, for one event loop: nothing here is locked.

    Args:
        cache: Has its own counts, which are told here.
    """

    def __init__(self, cache: ResponseCache | None = None) -> None:
        self.in_flight = 0
        self.page: Callable[[], str] = self.text
        """What /metrics answers; of other gateways too, where there are some."""
        self._cache = cache or ResponseCache()
        self.ways: Callable[[], Mapping[_Labels, int]] = dict
        """Requests to replicas by model, version and way, where there is more than one."""
        self.laned: Callable[[], Mapping[_Labels, int]] = dict
        """Of those by link, the fast lane's, by model and version."""
        self._rows: dict[_Labels, _Row] = {}
        self._parts: dict[_Labels, dict[str, _Times]] = {}

    def count(
        self,
        *,
        route: str,
        model: str,
        version: str,
        code: int,
        seconds: float,
        received: int,
        sent: int,
        parts_s: Mapping[str, float] = _NO_PARTS,
    ) -> None:
        """Take one answered request: how long it and its parts took, and bytes of both bodies."""
        labels = (route, model, version)
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = _Row(self._parts.setdefault((model, version), {}))
        row.codes[code] = row.codes.get(code, 0) + 1
        row.received += received
        row.sent += sent
        times, bounds = row.times, BUCKETS_S
        times.buckets[bisect_left(bounds, seconds)] += 1
        times.seconds += seconds
        parts = row.parts
        for name, part_s in parts_s.items():
            times = parts.get(name)
            if times is None:
                times = parts[name] = _Times()
            times.buckets[bisect_left(bounds, part_s)] += 1
            times.seconds += part_s

    def count_refused(self, code: int) -> None:
        """Take a request that was no HTTP as we take it, or came on one connection too many."""
        self.count(route=NO_ROUTE, model="", version="", code=code, seconds=0.0, received=0, sent=0)

    def text(self) -> str:
        """All of it, in Prometheus's text format."""
        return "".join(f"{line}\n" for row in INGRESS_TABLE for line in self._lines(row))

    def _lines(self, row: Metric) -> Iterator[str]:
        yield f"# HELP {row.name} {row.meaning}"
        yield f"# TYPE {row.name} {row.kind}"
        if row.kind == "histogram":
            yield from self._histogram(row)
        else:
            for labels, value in self._values(row.name):
                yield f"{row.name}{_braced(row.labels, labels)} {value}"

    def _values(self, name: str) -> _Values:
        rows = self._rows.items()
        match name.removeprefix("eagleray_ingress_"):
            case "requests_total":
                return [
                    ((*labels, str(int(code))), number)
                    for labels, row in rows
                    for code, number in row.codes.items()
                ]
            case "in_flight":
                return [((), self.in_flight)]
            case "received_bytes_total":
                return [(labels, row.received) for labels, row in rows]
            case "sent_bytes_total":
                return [(labels, row.sent) for labels, row in rows]
            case "way_total":
                return self.ways().items()
            case "lane_total":
                return self.laned().items()
            case "cache_requests_total":
                return self._cache.counts.items()
            case "cache_bytes":
                return self._cache.sizes().items()
            case _:
                raise AssertionError(f"{name} has no values")

    def _histogram(self, row: Metric) -> Iterator[str]:
        found = {labels: of.times for labels, of in self._rows.items()}
        if "part" in row.labels:
            found = {(*of, name): times for of, parts in self._parts.items() for name, times in parts.items()}
        for labels, times in found.items():
            for bound, count in zip(_BOUNDS, accumulate(times.buckets), strict=True):
                yield f"{row.name}_bucket{_braced((*row.labels, 'le'), (*labels, bound))} {count}"
            yield f"{row.name}_sum{_braced(row.labels, labels)} {times.seconds:.6f}"
            yield f"{row.name}_count{_braced(row.labels, labels)} {sum(times.buckets)}"


def _braced(names: tuple[str, ...], values: _Labels) -> str:
    # Values are our own patterns and names of deployed models: none has a quote or a backslash.
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True)) + "}"
