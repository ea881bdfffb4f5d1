"""Where a run's time went: every moment from its submission to its end has one kind. Pure.

The driver says when it found a loss, ordered a formation, suspended the run (`noticed`, `ordered`, ...).
Rank 0 says when it trained and at which step it was (`trains`, `at`, `held_up`), and may say so later than
the driver; so what the driver says waits until rank 0 tells of the formation that came of it.

Times are seconds since the epoch. Clocks of hosts differ a little: a time that lies before what has been
accounted for counts as no time. So no part is negative, and all parts together are the wall time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Cause = Literal["start", "wait", "detect", "reschedule", "restore", "redo", "checkpoint"]
Kind = Literal["useful", "rest"] | Cause

CAUSES: tuple[Cause, ...] = get_args(Cause)
KINDS: tuple[Kind, ...] = ("useful", *CAUSES, "rest")
MEANINGS: Mapping[Cause, str] = {
    "start": "from the submission to the first formation that trains",
    "wait": "for nodes or a claim, and while suspended",
    "detect": "from the last step to the moment that the driver knows of a loss",
    "reschedule": "until the next formation is ordered: others come out of their step, workers are started",
    "restore": "until it trains: its ranks connect, and hold one state",
    "redo": "steps that had been trained before",
    "checkpoint": "for which checkpoints held the steps up",
}
"""Why time is lost."""

_STEPS = "steps"
_State = Literal["steps"] | Cause


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run by kind: `useful_s`, all of `lost_s` and `rest_s` together are `wall_s`."""

    wall_s: float
    useful_s: float
    """Of steps that were trained for the first time."""
    lost_s: Mapping[Cause, float]
    """By cause, each of CAUSES."""
    rest_s: float
    """Neither: evaluations, and what follows the last step."""

    @property
    def ratio(self) -> float:
        """Useful time over wall time; 0 where there was none."""
        return self.useful_s / self.wall_s if self.wall_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "ratio": self.ratio,
            "wall_s": self.wall_s,
            "useful_s": self.useful_s,
            "lost_s": dict(self.lost_s),
            "rest_s": self.rest_s,
        }


def in_words(goodput: Mapping[str, Any]) -> str:
    """One line of a `Goodput.to_json`: for a log."""
    parts = {**goodput["lost_s"], "rest": goodput["rest_s"]}
    others = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items() if seconds >= 0.05)
    return (
        f"goodput {goodput['ratio']:.1%}: {goodput['useful_s']:.1f} s of steps in {goodput['wall_s']:.1f} s"
        + (f"; {others}" if others else "")
    )


class Stretch(NamedTuple):
    """Time of one kind, without what held steps up in it."""

    begin: float
    end: float
    kind: Kind


class _Told(NamedTuple):
    """What the driver said, until it is its turn."""

    time: float
    what: Literal["passed", "noticed", "ordered", "suspended", "resumed"]
    number: int = 0
    """Of `ordered`: the attempt's."""
    kind: Cause = "start"
    """Of `passed`."""


@dataclass
class TimeAccount:
    """See the module. Every method but `goodput` adds to it."""

    reached: int = 0
    """The highest step so far, earlier drivers' included: steps up to it are redone when they come again."""
    stretches: list[Stretch] = field(default_factory=list)
    """In their order, neighbours of different kinds."""
    _seconds: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    _began_at: float | None = None
    _until: float = 0.0
    """Everything from the beginning to here has its kind."""
    _state: _State = "start"
    """What goes on from there on, as far as is known."""
    _told: list[_Told] = field(default_factory=list)
    _number: int = 0
    """Of the formation that trains, or trained last."""
    _step: int = 0
    """The newest of the formation."""
    _first_step: int = 0
    """That the formation went on from."""
    _of_formation: dict[Kind, float] = field(default_factory=dict)
    """Seconds of its steps, useful and redone."""
    _owed: dict[Kind, float] = field(default_factory=dict)
    """Seconds by which the steps after the newest one are known to have been held up."""

    def begin(self, time: float) -> None:
        """The run was submitted; without it, it begins with the first thing that is told."""
        if self._began_at is None:
            self._began_at = self._until = time

    def passed(self, time: float, kind: Cause) -> None:
        """Driver: all time up to here that has no kind yet is of this one."""
        self._hear(_Told(time, "passed", kind=kind))

    def noticed(self, time: float) -> None:
        """Driver: workers were found to be lost."""
        self._hear(_Told(time, "noticed"))

    def ordered(self, time: float, number: int) -> None:
        """Driver: workers are to form the group of that attempt."""
        if number > self._number:
            self._hear(_Told(time, "ordered", number))

    def suspended(self, time: float) -> None:
        """Driver: the run has given back all workers, and waits."""
        self._hear(_Told(time, "suspended"))

    def resumed(self, time: float) -> None:
        """Driver: it has got its claim again."""
        self._hear(_Told(time, "resumed"))

    def trains(self, time: float, step: int, number: int) -> None:
        """Rank 0: the formation of that attempt trains from here on; `step` is the last one it holds."""
        if number < self._number:
            return
        self.begin(time)
        self._settle(number)
        self._advance(time, "restore" if self._state == _STEPS else self._state)
        self._state, self._number, self._step, self._first_step = _STEPS, number, step, step
        self._of_formation, self._owed = {}, {}

    def at(self, time: float, step: int) -> None:
        """Rank 0: this step has been taken. What is older than the newest one is no news."""
        if self._state != _STEPS or step <= self._step:
            return
        num_redone = max(0, min(step, self.reached) - self._step)
        self._advance(time, "useful", redone=num_redone / (step - self._step))
        self._step, self.reached = step, max(self.reached, step)

    def held_up(self, step: int, seconds: float, kind: Literal["checkpoint", "rest"]) -> None:
        """Rank 0: after this step the next one was held up for so long."""
        if step >= self._step:
            self._owed[kind] = self._owed.get(kind, 0.0) + seconds
            return
        # That time has been taken for the steps'.
        steps: dict[Kind, float] = self._of_formation
        if step < self._first_step:  # committed in an earlier formation, and told in this one
            steps = {"useful": self._seconds["useful"] - self._of_formation.get("useful", 0.0)}
        total = sum(steps.values())
        for taken_from, amount in list(steps.items()):
            if total > 0:
                moved = min(amount, seconds * amount / total, self._seconds[taken_from])
                steps[taken_from] -= moved
                self._seconds[taken_from] -= moved
                self._seconds[kind] += moved

    def goodput(self, end: float | None = None) -> Goodput:
        """All parts, up to the last thing that was told; with `end`, up to there."""
        whole = self.closed(end)
        began_at = whole._until if whole._began_at is None else whole._began_at
        return Goodput(
            wall_s=whole._until - began_at,
            useful_s=whole._seconds["useful"],
            lost_s={cause: whole._seconds[cause] for cause in CAUSES},
            rest_s=whole._seconds["rest"],
        )

    def closed(self, end: float | None = None) -> TimeAccount:
        """A copy in which nothing is left open."""
        whole = copy.deepcopy(self)
        whole._settle()
        if end is not None:
            whole.begin(end)
            whole._advance(end, "rest" if whole._state == _STEPS else whole._state)
        return whole

    def _hear(self, told: _Told) -> None:
        self.begin(told.time)
        self._told.append(told)

    def _settle(self, number: int | None = None) -> None:
        """Account for what the driver has said: up to its order of that formation, or all of it."""
        numbers = [told.number for told in self._told]
        num_due = numbers.index(number) + 1 if number in numbers else len(numbers)
        due, self._told = self._told[:num_due], self._told[num_due:]
        for told in due:
            self._take(told)

    def _take(self, told: _Told) -> None:
        state = self._state
        if told.what == "passed":
            self._advance(told.time, told.kind)
            return
        if told.what == "resumed":
            self._advance(told.time, "wait")
            self._state = "reschedule"
            return
        before: Cause = ("detect" if told.what == "noticed" else "reschedule") if state == _STEPS else state
        self._advance(told.time, before)
        if told.what == "suspended":
            self._state = "wait"
        elif state != "start":  # a start that is tried again is still the start
            self._state = "restore" if told.what == "ordered" else "reschedule"

    def _advance(self, time: float, kind: Kind, *, redone: float = 0.0) -> None:
        """Give the time up to `time` its kind; of steps the share `redone` comes first."""
        begin, left = self._until, time - self._until
        if left <= 0:
            return
        for owed, seconds in list(self._owed.items()):
            paid = min(seconds, left)
            self._seconds[owed] += paid
            self._owed[owed], left = seconds - paid, left - paid
        parts: dict[Kind, float] = {kind: left}
        if kind == "useful":
            parts = {"redo": left * redone, "useful": left * (1 - redone)}
            for part, seconds in parts.items():
                self._of_formation[part] = self._of_formation.get(part, 0.0) + seconds
        for part, seconds in parts.items():
            self._seconds[part] += seconds
        if 0 < redone < 1:
            between = begin + (time - begin) * redone
            self._draw(Stretch(begin, between, "redo"))
            self._draw(Stretch(between, time, "useful"))
        else:
            self._draw(Stretch(begin, time, "redo" if redone else kind))
        self._until = time

    def _draw(self, stretch: Stretch) -> None:
        last = self.stretches[-1] if self.stretches else None
        if last is not None and last.kind == stretch.kind:
            self.stretches[-1] = last._replace(end=stretch.end)
        else:
            self.stretches.append(stretch)
