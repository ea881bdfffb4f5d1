"""The account of a run: when what happened, what was lost and how long that took. Pure values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from eagleray.training.observer import Change
from eagleray.training.telemetry import Record
from eagleray.workflows.goodput import Goodput, TimeAccount

if TYPE_CHECKING:
    from eagleray.evaluation.run_size import Course

PHASES = (
    ("submitted", "job accepted by Ray until the driver runs"),
    ("driver", "connect, check the capacity, ask for nodes"),
    ("nodes", "wait for nodes, or for the run's turn"),
    ("workers", "start the workers, import torch and Ray Train in them"),
    ("group", "form the process groups, read the data, build the model, load the checkpoint"),
    ("first step", "until the first step is done"),
)
"""Name and meaning of each span between submission and the first step."""
_WAITING = ("nodes",)
"""Spans in which the run waits for others."""


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
    nodes: list[str | None] = field(default_factory=list)
    """Name of the node of each of `ranks`, where it is known."""
    noticed_at: float | None = None
    """When the driver knew of it."""
    ordered_at: float | None = None
    """When the formation that trained again was ordered."""
    trained_at: float | None = None
    """When its ranks had one state, and began with a step."""
    resumed_step: int | None = None
    """Step of the state that the run went on from: in memory, or of a checkpoint."""
    first_step_at: float | None = None
    """Time of the first step after."""
    owed_share: float = 0.0
    """About so much of what compression still owed was lost with them."""
    owed_norm: float = 0.0
    """And so large that was, about: the norm of its part of the ranks' mean."""

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
        return {
            **dataclasses.asdict(self),
            "redone_steps": self.redone_steps,
            "pause_s": self.pause_s,
            "detect_s": _seconds_between(self.lost_at, self.noticed_at),
            "reschedule_s": _seconds_between(self.noticed_at, self.ordered_at),
            "restore_s": _seconds_between(self.ordered_at, self.trained_at),
        }


@dataclass(frozen=True)
class Size:
    """From here on so many workers train, until the next of these."""

    time: float
    workers: int
    why: Literal["formed", "lost", "suspended"]
    attempt: int
    """That was formed, lost or suspended."""
    asked_at: float | None = None
    """Of `formed`: when the formation before was asked to stop, or given up."""


@dataclass
class Account:
    """Built up from what the observer hears; changed by `changed`, `take` and `lost`."""

    marks: dict[str, float] = field(default_factory=dict)
    """Time at the end of each span of PHASES, and of `submitted_at`."""
    recoveries: list[Recovery] = field(default_factory=list)
    suspensions: list[dict[str, Any]] = field(default_factory=list)
    """Each with `began_at`, `ended_at` (None: not over), `step`, `reason`, `is_saved`."""
    unsaved_step: int | None = None
    """The step that the ranks stopped after last, where the storage did not take it."""
    sizes: list[Size] = field(default_factory=list)
    time: TimeAccount = field(default_factory=TimeAccount)
    ended_at: float | None = None
    num_attempts: int = 0
    attempt: int = 0
    """Number of the current one."""
    nodes: set[str] = field(default_factory=set)
    step: int = 0
    """The highest that was reached."""
    position: int = 0
    """The last that was taken: lower, while steps are redone."""
    step_at: float = 0.0
    """When that was."""
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
    commit_times: list[float] = field(default_factory=list)
    commit_seconds: float = 0.0
    blocked_seconds: float = 0.0
    """For which commits held the steps up."""
    latest: dict[str, float] = field(default_factory=dict)
    """Newest value of each metric."""
    history: list[dict[str, float]] = field(default_factory=list)
    first_loss: float | None = None
    _nodes_by_rank: dict[int, str] = field(default_factory=dict)
    """Names, of the current formation."""

    def changed(self, change: Change, node_name: Callable[[str], str] = str) -> None:
        """Workers form a group; `node_name` makes a node's name from its id."""
        if not self.num_attempts:
            self._open()
        self.time.ordered(change.time, change.number)
        self.sizes.append(
            Size(change.time, len(change.workers), "formed", change.number, asked_at=change.left_at)
        )
        if self.pending is not None:
            self.pending.ordered_at = change.time
        self.attempt = change.number
        self.num_attempts += 1
        self.nodes |= {worker.node_id for worker in change.workers}
        self._nodes_by_rank = {worker.rank: node_name(worker.node_id) for worker in change.workers}
        self.marks.setdefault("workers", change.time)

    def lost(
        self, ranks: Sequence[int], reason: str, noticed_at: float | None = None, *, num_left: int = 0
    ) -> Recovery:
        """Ranks failed, as was noticed then; `num_left` others go on, or all workers are started again."""
        nodes = [self._nodes_by_rank.get(rank) for rank in ranks]
        recovery = Recovery(list(ranks), reason, self.step_at, self.position, self.attempt, nodes, noticed_at)
        self.recoveries.append(recovery)
        if noticed_at is not None:
            self.time.noticed(noticed_at)
            self.sizes.append(Size(noticed_at, num_left, "lost", self.attempt))
        return recovery

    def suspended(self, reason: str, began_at: float, *, is_saved: bool = True) -> None:
        """The run has given back all workers, and waits for its turn."""
        facts = {"step": self.position, "reason": reason, "is_saved": is_saved}
        self.suspensions.append({"began_at": began_at, "ended_at": None, **facts})
        self.time.suspended(began_at)
        self.sizes.append(Size(began_at, 0, "suspended", self.attempt))

    def resumed(self, ended_at: float) -> None:
        """It may have workers again."""
        self.suspensions[-1]["ended_at"] = ended_at
        self.time.resumed(ended_at)

    def ended(self, at: float) -> None:
        """The run is over; what it did not get back from, it did not."""
        if not self.num_attempts:
            self._open()
        self.ended_at = at

    def goodput(self) -> Goodput:
        """Where the time went: up to the end, or to the last thing that is known."""
        return self.time.goodput(self.ended_at)

    def course(self) -> Course:
        """For the picture of the run's size; empty where nothing is known."""
        from eagleray.evaluation.run_size import Course

        whole = self.time.closed(self.ended_at)
        found = whole.goodput()
        return Course(
            began_at=whole.stretches[0].begin if whole.stretches else 0.0,
            ended_at=whole.stretches[-1].end if whole.stretches else 0.0,
            sizes=[(size.time, size.workers) for size in self.sizes],
            stretches=whole.stretches,
            seconds={"useful": found.useful_s, **found.lost_s, "rest": found.rest_s},
            losses=[size.time for size in self.sizes if size.why == "lost"],
            resizes=[
                now.time
                for before, now in itertools.pairwise(self.sizes)
                if before.why == now.why == "formed"
            ],
            suspensions=[
                (one["began_at"], one["ended_at"] or self.ended_at or one["began_at"])
                for one in self.suspensions
            ],
            commits=self.commit_times,
        )

    def _open(self) -> None:
        """Account for the time before any workers."""
        if "submitted_at" in self.marks:
            self.time.begin(self.marks["submitted_at"])
        for name, _ in PHASES:
            if name in self.marks:
                self.time.passed(self.marks[name], "wait" if name in _WAITING else "start")

    def take(self, record: Record) -> None:
        """Count one record of rank 0."""
        kind = record["kind"]
        if kind == "phase" and record["name"] == "training":
            self.marks.setdefault("group", record["time"])
            self.time.trains(record["time"], record["step"], record["attempt"])
            self.position = record["step"]
            # The attempt that was lost may still tell of its own start.
            if self.pending is not None and record["attempt"] > self.pending.lost_attempt:
                self.pending.resumed_step, self.pending.trained_at = record["step"], record["time"]
        elif kind == "step":
            self._take_step(record)
        elif kind == "evaluation":
            self.time.held_up(record["step"], record.get("seconds", 0.0), "rest")
            self._remember(record["step"], _numbers(record, without=("step", "time", "seconds")))
        elif kind == "compression":
            self.choices.append({key: value for key, value in record.items() if key not in ("kind", "time")})
        elif kind == "buckets":
            self.buckets = record["buckets"]
        elif kind == "commit":
            self.commit_times.append(record["time"])
            blocked_s = record.get("blocked_s", 0.0)
            self.blocked_seconds += blocked_s
            self.time.held_up(record["step"], blocked_s, "checkpoint")
            self.commit_seconds += record["seconds"]
            self.state_bytes += record.get("state_bytes", 0.0)
            self.unsaved_step = None
        elif kind == "lost" and self.pending is not None:
            self.pending.owed_share, self.pending.owed_norm = record["share"], record["norm"]
        elif kind == "unsaved":
            self.unsaved_step = record["step"]
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
        if record["step"] < self.position:
            return  # a rank that is the first one now tells its whole story
        self.time.at(record["time"], record["step"])
        self.position, self.step_at = record["step"], record["time"]
        self.step = max(self.step, self.position)
        lost = self.pending
        if lost is not None and lost.resumed_step is None:
            lost.lost_step, lost.lost_at = self.position, self.step_at

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
            "suspensions": self.suspensions,
            "sizes": [dataclasses.asdict(size) for size in self.sizes],
            "goodput": self.goodput().to_json(),
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
            "num_commits": len(self.commit_times),
            "commit_seconds": self.commit_seconds,
            "blocked_seconds": self.blocked_seconds,
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


def _seconds_between(begin: float | None, end: float | None) -> float | None:
    """None where one is not known; clocks of two hosts may differ, so never negative."""
    return None if begin is None or end is None else max(0.0, end - begin)


def _numbers(record: Record, without: Sequence[str]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in record.items()
        if key not in without and isinstance(value, int | float)
    }
