"""What is known of the trials of a search, and which one is the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from eagleray.packaging import Folder

State = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "interrupted"]
"""paused: it gave its place back, and goes on from there when there is room again."""
OVER: tuple[State, ...] = ("finished", "stopped", "failed")
"""Ended for good: trained to the end, ended early by the scheduler or the time budget, or failed."""

Evaluation = dict[str, float]
"""`step` and the metrics measured there."""


EVALUATIONS = "evaluations.json"
"""In a trial's run folder; written before the checkpoint of the same step."""


@dataclass
class Trial:
    """One trial. Changed as the search goes on; `to_json` is what a later driver knows of it."""

    number: int
    """From 1."""
    values: dict[str, Any]
    """By dotted field of the train spec."""
    run_id: str
    """A trial is a run: its folder has this name."""
    state: State = "waiting"
    step: int = 0
    total_steps: int | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    """Names of the nodes of its current or last start."""
    seconds: float = 0.0
    """Time on the cluster, over all starts."""
    error: str | None = None
    why_stopped: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether a resumed search leaves it alone."""
        return self.state in OVER

    def value_of(self, metric: str) -> float | None:
        """The newest evaluation's value: the one that the trial's newest checkpoint belongs to."""
        return self.evaluations[-1].get(metric) if self.evaluations else None

    def evaluated(self, evaluation: Mapping[str, float]) -> None:
        """Add an evaluation; those of the same and later steps, from before a restart, are forgotten."""
        kept = [earlier for earlier in self.evaluations if earlier["step"] < evaluation["step"]]
        self.evaluations = [*kept, dict(evaluation)]

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Trial:
        """What `to_json` gave."""
        return cls(**fields)


def best_of(trials: Iterable[Trial], metric: str, is_max_better: bool) -> Trial | None:
    """The trial with the best newest value; of equal ones the one that trained longest, then the first.

    Failed trials do not count, nor values that are not finite.
    """
    sign = 1 if is_max_better else -1
    ranked = [
        (sign * value, trial.step, -trial.number, trial)
        for trial in trials
        if trial.state != "failed" and (value := trial.value_of(metric)) is not None and math.isfinite(value)
    ]
    return max(ranked, key=lambda entry: entry[:3])[3] if ranked else None


def winner_of(trials: Sequence[Trial], metric: str, is_max_better: bool) -> Trial | None:
    """The best of the trials that trained to their end; where none did, the best of the others."""
    finished = [trial for trial in trials if trial.state == "finished"]
    return best_of(finished, metric, is_max_better) or best_of(trials, metric, is_max_better)


def best_so_far(trials: Iterable[Trial], metric: str, is_max_better: bool) -> list[tuple[int, float]]:
    """(number, best value of the trials up to it) of each trial with a value, in the order of numbers."""
    pick, found = (max if is_max_better else min), []
    for trial in sorted(trials, key=lambda trial: trial.number):
        value = trial.value_of(metric)
        if trial.state != "failed" and value is not None and math.isfinite(value):
            found.append((trial.number, pick(value, found[-1][1]) if found else value))
    return found


def read_evaluations(run: Folder) -> list[Evaluation]:
    """What the trial in `run` has measured so far; empty where it has not begun, or the file is damaged."""
    try:
        return run.read_json(EVALUATIONS)
    except (FileNotFoundError, ValueError):
        return []
