"""All rows by name, in the order in which they run. A row's module is imported when the row begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PEERS = ("fastapi", "litserve", "bentoml", "mlserver", "serve")
RAW_PEERS = ("fastapi", "serve")


@dataclass(frozen=True)
class Row:
    """One part of the benchmark."""

    name: str
    function: str
    """`module:function`; takes a `Teller`, the number of repetitions, the `Rig`, and `arguments`."""
    reps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_full: bool = False
    """Only with --full."""
    has_ours: bool = True
    """It asks the platform, which is up from the first such row to the end."""


OVERLOAD: Mapping[str, Any] = {"model": "large", "samples": 4, "times": 3.0, "objective_ms": 500}
_ALL = (
    *(Row(f"peer_{name}", "row_requests:peer", 3, {"name": name}, has_ours=False) for name in PEERS),
    *(Row(f"raw_{name}", "row_requests:peer_raw", 3, {"name": name}, has_ours=False) for name in RAW_PEERS),
    Row("tiny", "row_requests:rate", 8, {"model": "tiny", "connections": 16}),
    Row("profile", "row_profile:profile", 2, {"model": "tiny", "connections": 16}),
    Row("added", "row_requests:rate", 8, {"model": "tiny", "connections": 1}),
    Row("half", "row_requests:half", 8, {"model": "tiny"}),
    Row("binary", "row_requests:rate", 6, {"model": "wide", "connections": 8, "is_binary": True}),
    Row(
        "batches_large",
        "row_models:batches",
        5,
        {"model": "large", "samples": 1, "connections": 64, "batch": 32},
    ),
    Row(
        "batches_mlp", "row_models:batches", 5, {"model": "mlp", "samples": 8, "connections": 32, "batch": 64}
    ),
    Row("lone", "row_requests:rate", 6, {"model": "mlp", "connections": 1}),
    Row("overload", "row_requests:overload", 4, OVERLOAD),
    Row("first_event", "row_models:first_event", 6, {"model": "small-gpt", "tokens": 16}),
    Row("events", "row_models:events", 5, {"model": "small-gpt", "tokens": 256, "streams": 32}),
    Row("at_once", "row_models:at_once", 5, {"model": "gpt", "tokens": 96, "streams": 16}),
    Row("step", "row_long:step", 3, {"model": "large"}, is_full=True),
    Row("steady", "row_long:steady", 1, {"model": "large", "seconds": 600}, is_full=True),
    *(
        Row(f"failures_{kind}", "row_failures:failures", 1, {"kind": kind, "seconds": 300}, is_full=True)
        for kind in ("scale-down", "replacement", "kill", "drain")
    ),
    Row("soak", "row_long:soak", 1, {"model": "wide", "samples": 17, "seconds": 600}, is_full=True),
)
"""The peers come first: the platform, which idles on the same cores, is not up yet then."""
ROWS: Mapping[str, Row] = {row.name: row for row in _ALL}
