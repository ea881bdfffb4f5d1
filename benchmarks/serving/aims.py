"""The table "How good" of serving: what each row has to reach, and whether it does. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kit.results import values_of

Unit = Literal["x", "/s", "us", "ms", "s", "%", ""]


@dataclass(frozen=True)
class Aim:
    """One line of the table."""

    row: str
    """Name of the row that measures it (`rows.ROWS`)."""
    what: str
    key: str
    """Of a repetition."""
    goal: float | str | None
    """A name: the row's own fact of that name; None: only told."""
    unit: Unit = "ms"
    at_least: bool = False
    """The goal is a lower bound."""
    binds: Literal["median", "worst"] = "median"
    beside: tuple[str, ...] = ()
    """Rows of this run that measured the same of others."""
    before: str = ""
    """What was measured of the best peer or of Serve before, in words."""
    needs: tuple[str, float] | None = None
    """A key whose median must be this at least for the row to say what the line says."""


_PEERS = tuple(f"peer_{name}" for name in ("fastapi", "litserve", "bentoml", "mlserver", "serve"))
_FAILED = "failed requests through the SDK"
_NONE: dict[str, Any] = {"goal": 0, "unit": "", "binds": "worst"}
AIMS: tuple[Aim, ...] = (
    Aim(
        "tiny", "tiny v2 JSON infer, full admission, separate replica process, 16 connections: over bare",
        "ratio", 2.4, "x", at_least=True, beside=_PEERS,
    ),
    Aim(
        "tiny", "the same, requests/s", "ours_per_s", 10_000, "/s", at_least=True, beside=_PEERS,
        before="MLServer 2.8 k (in process), Serve two hops 1.0 k",
    ),
    Aim("tiny", "the same, bare", "bare_per_s", None, "/s"),
    Aim("profile", "the same, CPU time of the gateways for a request", "gateway_us", None, "us"),
    Aim("profile", "the same, CPU time of the replica for a request", "replica_us", None, "us"),
    Aim(
        "added", "added latency over bare, one connection, p50", "added_p50_ms", 0.12, beside=_PEERS,
        before="Serve 1.5–4 ms",
    ),
    Aim("half", "added p99 at half of bare's capacity, in pairs", "added_p99_ms", 1.0),
    Aim(
        "binary", "600 KB binary tensor, same node, 8 connections: requests/s", "ours_per_s", 3500, "/s",
        at_least=True, beside=("raw_fastapi", "raw_serve"), before="Serve 408",
    ),
    Aim("binary", "the same, bare", "bare_per_s", None, "/s"),
    Aim(
        "batches_large", "batched goodput over torch alone at that batch, a batch of 5 ms or more",
        "share", 0.9, "%", at_least=True, before="none published", needs=("batch_ms", 5.0),
    ),
    Aim(
        "batches_mlp", "batched goodput over torch alone at that batch, MLP of 1.3 M parameters",
        "share", 0.7, "%", at_least=True, before="none published",
    ),
    Aim(
        "lone", "lone request with batching on, over bare, p50", "added_p50_ms", 0.3,
        before="@serve.batch: the whole wait",
    ),
    Aim("step", "10x load step -> decision to scale", "decision_s", 3.0, "s", before="~40 s"),
    Aim(
        "steady", "reversals in 10 minutes of constant load", "reversals", 1, "", binds="worst",
        before="thrash",
    ),
    Aim("overload", "overload 3x: goodput over the peak", "goodput", 0.95, "%", at_least=True),
    Aim("overload", "overload 3x: p99 of the admitted", "p99_ms", "objective_ms"),
    Aim("overload", "overload 3x: a key's part, off its weight's", "off_share", 0.05, "%"),
    Aim("overload", "overload 3x: a refusal takes, p50", "refused_p50_ms", None),
    Aim("first_event", "stream: first event, added over bare, p50", "added_ms", 1.0),
    Aim(
        "events", "stream: server-sent events per second and gateway core", "per_core", 40_000, "/s",
        at_least=True, before="Serve 23 k on 16 cores",
    ),
    Aim("events", "stream: events per second", "events_per_s", None, "/s"),
    Aim("events", "stream: cores that the gateways took", "gateway_cores", None, "%"),
    Aim(
        "at_once", "GPT generation, 16 concurrent streams over one at a time: tokens/s", "ratio", 6.0, "x",
        at_least=True,
    ),
    Aim("at_once", "the same, tokens/s of the 16", "all_per_s", None, "/s"),
    Aim("failures_scale-down", f"{_FAILED}: scale-down", "failed", **_NONE, before="40–45 per event"),
    Aim("failures_replacement", f"{_FAILED}: version replacement", "failed", **_NONE, before="45 per event"),
    Aim("failures_kill", f"{_FAILED}: replica SIGKILL", "failed", **_NONE, before="40 per event"),
    Aim("failures_drain", f"{_FAILED}: gateway drain", "failed", **_NONE),
    Aim(
        "soak", "soak, 10 MB bodies, 10 minutes: growth of the process that grew most", "growth", 0.02, "%",
        binds="worst",
    ),
    Aim("soak", "the same, Ray's raylet and GCS left out", "ours_growth", 0.02, "%", binds="worst"),
    Aim("soak", "soak: file descriptors that stayed open", "descriptors", **_NONE),
    Aim("soak", "soak: memory files (memfd) that stayed", "memory_files", **_NONE),
    Aim("soak", "soak: bytes in /dev/shm that stayed", "shared_bytes", **_NONE),
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """An aim and what was measured of it."""

    aim: Aim
    goal: float | None
    values: Sequence[float]
    is_met: bool | None
    """None where nothing was measured, or nothing was to be reached."""
    beside: Mapping[str, float]
    """Medians by row."""
    remark: str
    """Why it is not what it should be, where it is not."""

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)

    @property
    def worst(self) -> float:
        """Of the values."""
        return min(self.values) if self.aim.at_least else max(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the values; the only one where there is one."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


def judge(aim: Aim, rows: Mapping[str, Mapping[str, Any]]) -> Judged:
    """Compare an aim with what its row measured; `rows` are results by name."""
    row: Mapping[str, Any] = rows.get(aim.row) or {}
    values, facts = values_of(row, aim.key), row.get("facts", {})
    goal = facts.get(aim.goal) if isinstance(aim.goal, str) else aim.goal
    beside = {
        name: statistics.median(found) for name in aim.beside if (found := values_of(rows.get(name), aim.key))
    }
    is_met, remark = None, str(facts.get("remark", ""))
    if aim.needs is not None and values:
        key, least = aim.needs
        found = values_of(row, key)
        if not found or statistics.median(found) < least:
            told = f"{statistics.median(found):.1f}" if found else "not told"
            remark = f"{key} is {told}, below {least:g}: this says nothing"
            goal = None
    if values and goal is not None:
        extreme = min(values) if aim.at_least else max(values)
        bound = extreme if aim.binds == "worst" else statistics.median(values)
        is_met = (bound >= goal if aim.at_least else bound <= goal) and not row.get("failure")
    return Judged(aim, goal, values, is_met, beside, remark)
