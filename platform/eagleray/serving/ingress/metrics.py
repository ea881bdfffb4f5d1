"""The ingress's own counters, as Prometheus text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from eagleray.metrics import INGRESS_TABLE, Metric

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS_S = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

NO_ROUTE = "(none)"
"""Label of requests that found no route: paths that strangers try are no labels."""

_Labels = tuple[str, ...]


class IngressMetrics:
    """Counts of one ingress, for one event loop: nothing here is locked."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.page: Callable[[], str] = self.text
        """What /metrics answers; of other gateways too, where there are some."""
        self._requests: dict[_Labels, int] = {}
        self._received: dict[_Labels, int] = {}
        self._sent: dict[_Labels, int] = {}
        self._buckets: dict[_Labels, list[int]] = {}
        self._seconds: dict[_Labels, float] = {}

    def count(
        self, *, route: str, model: str, version: str, code: int, seconds: float, received: int, sent: int
    ) -> None:
        """Take one answered request: how long it took, and bytes of both bodies."""
        labels = (route, model, version)
        with_code = (*labels, str(code))
        self._requests[with_code] = self._requests.get(with_code, 0) + 1
        self._received[labels] = self._received.get(labels, 0) + received
        self._sent[labels] = self._sent.get(labels, 0) + sent
        if (buckets := self._buckets.get(labels)) is None:
            buckets = self._buckets[labels] = [0] * (len(BUCKETS_S) + 1)
        buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds[labels] = self._seconds.get(labels, 0.0) + seconds

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
        elif row.name == "eagleray_ingress_in_flight":
            yield f"{row.name} {self.in_flight}"
        else:
            for labels, value in self._counters[row.name].items():
                yield f"{row.name}{_braced(row.labels, labels)} {value}"

    @property
    def _counters(self) -> dict[str, dict[_Labels, int]]:
        return {
            "eagleray_ingress_requests_total": self._requests,
            "eagleray_ingress_received_bytes_total": self._received,
            "eagleray_ingress_sent_bytes_total": self._sent,
        }

    def _histogram(self, row: Metric) -> Iterator[str]:
        bounds = [*(f"{bound:g}" for bound in BUCKETS_S), "+Inf"]
        for labels, buckets in self._buckets.items():
            for bound, count in zip(bounds, accumulate(buckets), strict=True):
                yield f"{row.name}_bucket{_braced((*row.labels, 'le'), (*labels, bound))} {count}"
            yield f"{row.name}_sum{_braced(row.labels, labels)} {self._seconds[labels]:.6f}"
            yield f"{row.name}_count{_braced(row.labels, labels)} {sum(buckets)}"


def _braced(names: tuple[str, ...], values: _Labels) -> str:
    # Values are our own patterns and names of deployed models: none has a quote or a backslash.
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(names, values, strict=True)) + "}"
