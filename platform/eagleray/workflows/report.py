"""The account of a run: when what happened, what was lost and how long that took. Pure values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eagleray.training.observer import Change
from eagleray.training.telemetry import Record

PHASES = (
    ("submitted", "job accepted by Ray until the driver runs"),
    ("driver", "connect, check the capacity, ask for nodes"),
    ("nodes", "wait for nodes"),
    ("workers", "start the workers, import torch and Ray Train in them"),
    ("group", "form the process groups, read the data, build the model, load the checkpoint"),
    ("first step", "until the first step is done"),
)
"""Name and meaning of each span between submission and the first step."""


@dataclass
class Recovery:
    """One loss of workers, and the way back."""

    ranks: list[int]
    reason: str
    lost_at: float
    """Time of the last step that was seen before."""
    lost_step: int
    lost_attempt: int = 0
    """Number of the attempt that ended."""
    resumed_step: int | None = None
    """Step of the checkpoint that the run went on from."""
    first_step_at: float | None = None
    """Time of the first step after."""

    @property
    def redone_steps(self) -> int | None:
        """Steps trained a second time; None while not back yet."""
        return None if self.resumed_step is None else max(0, self.lost_step - self.resumed_step)

    @property
    def pause_s(self) -> float | None:
        """From the last step before the loss to the first one after it."""
        return None if self.first_step_at is None else self.first_step_at - self.lost_at

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        return {**dataclasses.asdict(self), "redone_steps": self.redone_steps, "pause_s": self.pause_s}


@dataclass
class Account:
    """Built up from what the observer hears; changed by `changed`, `take` and `lost`."""

    marks: dict[str, float] = field(default_factory=dict)
    """Time at the end of each span of PHASES, and of `submitted_at`."""
    recoveries: list[Recovery] = field(default_factory=list)
    num_attempts: int = 0
    attempt: int = 0
    """Number of the current one."""
    nodes: set[str] = field(default_factory=set)
    step: int = 0
    step_at: float = 0.0
    samples: int = 0
    step_seconds: float = 0.0
    skipped_steps: int = 0
    """Of those taken and those redone: a gradient was not finite."""
    sent_bytes: float = 0.0
    payload_bytes: float = 0.0
    uncompressed_bytes: float = 0.0
    probe_bytes: float = 0.0
    """What `auto` sent to measure the link."""
    state_bytes: float = 0.0
    """What compression sent for the checkpoints: each rank what it still owes."""
    codec_seconds: float = 0.0
    """Of one worker, on average."""
    exchange_seconds: float = 0.0
    """In which one worker's engine waited for the network, on average."""
    choices: list[dict[str, Any]] = field(default_factory=list)
    """What `auto` has chosen, one after the other."""
    buckets: list[dict[str, Any]] = field(default_factory=list)
    """What rank 0's engine has done with each of DDP's."""
    num_commits: int = 0
    commit_seconds: float = 0.0
    latest: dict[str, float] = field(default_factory=dict)
    """Newest value of each metric."""
    history: list[dict[str, float]] = field(default_factory=list)
    first_loss: float | None = None

    def changed(self, change: Change) -> None:
        """Workers form a group."""
        self.attempt = change.number
        self.num_attempts += 1
        self.nodes |= {worker.node_id for worker in change.workers}
        self.marks.setdefault("workers", change.time)

    def lost(self, ranks: Sequence[int], reason: str) -> Recovery:
        """Ranks failed and the workers will be started again."""
        recovery = Recovery(list(ranks), reason, self.step_at, self.step, self.attempt)
        self.recoveries.append(recovery)
        return recovery

    def take(self, record: Record) -> None:
        """Count one record of rank 0."""
        kind = record["kind"]
        if kind == "phase" and record["name"] == "training":
            self.marks.setdefault("group", record["time"])
            # The attempt that was lost may still tell of its own start.
            if self.pending is not None and record["attempt"] > self.pending.lost_attempt:
                self.pending.resumed_step = record["step"]
        elif kind == "step":
            self._take_step(record)
        elif kind == "evaluation":
            self._remember(record["step"], _numbers(record, without=("step", "time", "seconds")))
        elif kind == "compression":
            self.choices.append({key: value for key, value in record.items() if key not in ("kind", "time")})
        elif kind == "buckets":
            self.buckets = record["buckets"]
        elif kind == "commit":
            self.num_commits += 1
            self.commit_seconds += record["seconds"]
            self.state_bytes += record.get("state_bytes", 0.0)
        elif kind == "at":
            self._reach(record)

    def _take_step(self, record: Record) -> None:
        self.marks.setdefault("first step", record["time"])
        if self.pending is not None and self.pending.resumed_step is not None:
            self.pending.first_step_at = record["time"]
        self._reach(record)
        self.samples += record["num_samples"]
        self.step_seconds += record["seconds"]
        self.skipped_steps += record.get("skipped_steps", 0)
        self.sent_bytes += record["sent_bytes"]
        self.payload_bytes += record.get("payload_bytes", 0.0)
        self.uncompressed_bytes += record["uncompressed_bytes"]
        self.probe_bytes += record.get("probe_bytes", 0.0)
        self.codec_seconds += record.get("codec_seconds", 0.0)
        self.exchange_seconds += record.get("exchange_seconds", 0.0)
        loss = {"loss": record["loss"]} if "loss" in record else {}
        if self.first_loss is None:
            self.first_loss = record.get("loss")
        rate = record["num_samples"] / record["seconds"]
        self._remember(
            record["step"],
            {**loss, "learning_rate": record["learning_rate"], "samples_per_second": rate},
        )

    def _reach(self, record: Record) -> None:
        """Rank 0 was at this step; what it tells of the time before a loss may arrive after it."""
        self.step, self.step_at = max(self.step, record["step"]), record["time"]
        lost = self.pending
        if lost is not None and lost.resumed_step is None:
            lost.lost_step, lost.lost_at = self.step, self.step_at

    @property
    def pending(self) -> Recovery | None:
        """The loss that the run is not back from yet."""
        last = self.recoveries[-1] if self.recoveries else None
        return last if last is not None and last.first_step_at is None else None

    @property
    def compression_ratio(self) -> float:
        """Uncompressed bytes over sent bytes; 1 where nothing was sent."""
        return self.uncompressed_bytes / self.sent_bytes if self.sent_bytes else 1.0

    def _remember(self, step: int, values: Mapping[str, float]) -> None:
        self.latest.update(values)
        self.history.append({"step": float(step), **values})

    def spans(self) -> dict[str, float]:
        """Seconds of each span of PHASES that is known."""
        spans, previous = {}, self.marks.get("submitted_at")
        for name, _ in PHASES:
            end = self.marks.get(name)
            if end is not None and previous is not None:
                spans[name] = end - previous
            previous = end if end is not None else previous
        return spans

    def to_json(self) -> dict[str, Any]:
        """What report.json says of the course of the run."""
        spans = self.spans()
        return {
            "spans_s": spans,
            "submit_to_first_step_s": sum(spans.values()),
            "num_attempts": self.num_attempts,
            "num_nodes": len(self.nodes),
            "recoveries": [recovery.to_json() for recovery in self.recoveries],
            "steps": self.step,
            "samples": self.samples,
            "step_seconds": self.step_seconds,
            "skipped_steps": self.skipped_steps,
            "sent_bytes": self.sent_bytes,
            "payload_bytes": self.payload_bytes,
            "uncompressed_bytes": self.uncompressed_bytes,
            "compression_ratio": self.compression_ratio,
            "probe_bytes": self.probe_bytes,
            "state_bytes": self.state_bytes,
            "codec_seconds": self.codec_seconds,
            "exchange_seconds": self.exchange_seconds,
            "compression_choices": self.choices,
            "buckets": self.buckets,
            "num_commits": self.num_commits,
            "commit_seconds": self.commit_seconds,
            "first_loss": self.first_loss,
            "metrics": self.latest,
        }


def sent(sent_bytes: float, uncompressed_bytes: float) -> str:
    """For instance "sent 1.2 GB instead of 9.4 GB"."""
    instead = f" instead of {size(uncompressed_bytes)}" if uncompressed_bytes > sent_bytes > 0 else ""
    return f"sent {size(sent_bytes)}{instead}"


def size(num_bytes: float) -> str:
    """For instance "12.3 MB" or "1.2 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 999.95e6 else f"{num_bytes / 1e6:.1f} MB"


def _numbers(record: Record, without: Sequence[str]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in record.items()
        if key not in without and isinstance(value, int | float)
    }
