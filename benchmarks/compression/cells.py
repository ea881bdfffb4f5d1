"""How a cell (n workers, one link) is measured: trials, then interleaved blocks, then `auto` in pairs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import arithmetic
from rig import Crew, SchemeFailed
from schemes import HIGH, SHAPES, Scheme

DENSE, COMPUTE = "DDP dense", "compute only"
BLOCK_S = 0.4
BLOCK_OF_DENSE = 0.5
"""A block lasts at least so much of a dense step: on a slow link one step alone says little."""
DENSE_EVERY = 3
"""Where `auto` is compared, a dense block counts for so many rounds: it takes the most time on slow links."""
CHUNK = 4
"""So many contestants beside dense are alive at a time: each takes 0.2 GB and more of every worker."""
MIN_ROUNDS, MAX_ROUNDS = 3, 12


@dataclass(frozen=True)
class Cell:
    """Where to measure."""

    n: int
    link: str
    rate_mbit: float | None

    def warm_steps(self, scheme: Scheme) -> int:
        """How many steps a scheme takes before it is timed: as many as it wants within 20 s, but 6."""
        return min(scheme.warm_steps, max(6, round(20 / self.dense_s)))

    @property
    def dense_s(self) -> float:
        """About what dense takes: for limits and warm-ups, not for the tables."""
        sent = arithmetic.formula_bytes("dense", SHAPES, self.n)
        return 0.15 * self.n + 1.15 * arithmetic.floor_s(0.0, sent, self.rate_mbit)

    def __str__(self) -> str:
        return f"n={self.n}, {self.link}"


@dataclass
class Row:
    """What was measured of one scheme in one cell. Times in seconds, bytes per rank and step."""

    name: str
    family: str
    formula: str
    durations: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """To the dense block of the same round."""
    facts: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    are_replicas_equal: bool | None = None


@dataclass
class Measured:
    """One cell's rows, and the conditions."""

    cell: Cell
    rows: dict[str, Row] = field(default_factory=dict)
    idle_bytes_per_s: float = 0.0
    load: tuple[float, float, float] = (0.0, 0.0, 0.0)
    auto: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


Say = Callable[[str], None]


def measure(
    crew: Crew, cell: Cell, schemes: Sequence[Scheme], budget_s: float, failed: dict[str, str], say: Say
) -> Measured:
    """All schemes' rows; `failed` maps a scheme to why it failed on links before, and is added to."""
    started = time.monotonic()
    measured = Measured(cell, load=os.getloadavg())
    measured.idle_bytes_per_s = statistics.mean(crew.call("idle", 1.0, limit_s=10))
    measured.rows = {one.name: Row(one.name, one.family, one.formula) for one in schemes}
    todo = [one for one in schemes if _survives(crew, cell, one, measured.rows[one.name], failed, say)]
    plain = [one for one in todo if one.name not in (DENSE, "auto")]
    dense = next(one for one in schemes if one.name == DENSE)
    chunks = [plain[at : at + CHUNK] for at in range(0, len(plain), CHUNK)]
    auto = next((one for one in todo if one.name == "auto"), None)
    budget = arithmetic.Budget(
        budget_s - (time.monotonic() - started), [len(chunk) + 1 for chunk in chunks] + [8]
    )
    for chunk in chunks:
        before = time.monotonic()
        play(crew, cell, [dense, *chunk], measured.rows, budget.next_s(), say)
        budget.spent(time.monotonic() - before)
    if auto is not None:
        measured.auto = compare_auto(crew, measured, dense, auto, todo, budget.next_s(), say)
    measured.seconds = time.monotonic() - started
    return measured


def _survives(crew: Crew, cell: Cell, scheme: Scheme, row: Row, failed: dict[str, str], say: Say) -> bool:
    """Whether a doubtful scheme takes its first steps; tried once with n workers, on the fastest link."""
    if not scheme.is_doubtful:
        return True
    if scheme.name in failed:
        row.failure = f"{failed[scheme.name]} (on the fastest link)"
        return False
    say(f"{cell}: does {scheme.name} run?")
    try:
        warm = cell.warm_steps(scheme)
        crew.call("build", scheme.name, warm, limit_s=8 + (warm + 1) * cell.dense_s)
        crew.call("drop", scheme.name, limit_s=10)
    except SchemeFailed as error:
        row.failure = failed[scheme.name] = str(error)
        crew.restart()
    return row.failure is None


def play(
    crew: Crew,
    cell: Cell,
    group: list[Scheme],
    rows: dict[str, Row],
    budget_s: float,
    say: Say,
    *,
    dense_every: int = 1,
) -> list[dict[str, float]]:
    """Rounds of one block each, until the budget is spent; returns each round's seconds per step.

    Rows get what was measured. A scheme that fails is marked, the crew starts again, and the rest goes on.
    """
    alive = list(group)
    while True:
        try:
            return _play(crew, cell, alive, rows, budget_s, say, dense_every)
        except _Failed as failed:
            rows[failed.scheme.name].failure = str(failed.__cause__)
            say(f"{cell}: {failed.scheme.name} failed: {failed.__cause__}")
            crew.restart()  # nothing is kept
            alive.remove(failed.scheme)
            if failed.scheme.name == DENSE:
                raise SchemeFailed(f"{cell}: dense failed: {failed.__cause__}") from failed


class _Failed(Exception):
    def __init__(self, scheme: Scheme):
        super().__init__(scheme.name)
        self.scheme = scheme


def _play(
    crew: Crew,
    cell: Cell,
    alive: list[Scheme],
    rows: dict[str, Row],
    budget_s: float,
    say: Say,
    dense_every: int,
) -> list[dict[str, float]]:
    started = time.monotonic()
    step_s = {}
    for scheme in alive:
        warm = cell.warm_steps(scheme)
        say(f"{cell}: {scheme.name} warms up")
        if scheme.name in crew.kept:
            step_s[scheme.name] = statistics.median(rows[scheme.name].durations)
            continue
        done = _call(crew, scheme, "build", warm, limit_s=20 + (warm + 2) * 2 * cell.dense_s)
        step_s[scheme.name] = max(one["durations"][-1] for one in done)
    rounds: list[dict[str, float]] = []
    longest = 0.0
    while len(rounds) < MAX_ROUNDS:
        began = time.monotonic()
        left_s = budget_s - (began - started)
        if rounds and left_s < longest and (len(rounds) >= MIN_ROUNDS or left_s < -budget_s):
            break
        say(f"{cell}: {', '.join(one.name for one in alive)}: round {len(rounds) + 1}")
        times = {}
        block_s = max(BLOCK_S, BLOCK_OF_DENSE * step_s.get(DENSE, 0.0))
        for scheme in alive if len(rounds) % 2 == 0 else alive[::-1]:
            if scheme.name == DENSE and len(rounds) % dense_every:
                times[DENSE] = rounds[-1][DENSE]
                continue
            count = arithmetic.steps_of_block(step_s[scheme.name], block_s)
            done = _call(crew, scheme, "run", count, limit_s=20 + 10 * count * max(step_s[scheme.name], 0.1))
            times[scheme.name] = max(one["wall_s"] for one in done) / count
            row = rows[scheme.name]
            row.durations += [
                statistics.mean(one) for one in zip(*(one["durations"] for one in done), strict=True)
            ]
            row.sent.append(statistics.mean(one["sent"] for one in done))
            step_s[scheme.name] = statistics.median(row.durations)
        if DENSE in times:
            for name, seconds in times.items():
                if name != DENSE or len(rounds) % dense_every == 0:
                    rows[name].ratios.append(seconds / times[DENSE])
        rounds.append(times)
        longest = max(longest, time.monotonic() - began)
    for scheme in alive:
        facts = _call(crew, scheme, "facts", limit_s=20)
        row = rows[scheme.name]
        row.facts = {**facts[0], "peak_mib": max(one["peak_mib"] for one in facts)}
        if scheme.name != COMPUTE:
            row.are_replicas_equal = len({one["digest"] for one in facts}) == 1
        if not all(one["is_finite"] for one in facts):
            row.failure = "its weights are not finite"
        if scheme.name == DENSE:  # its first steps are dear on a slow link
            crew.kept.add(DENSE)
        else:
            _call(crew, scheme, "drop", limit_s=30)
    return rounds


def _call(crew: Crew, scheme: Scheme, name: str, *arguments: Any, limit_s: float) -> list[Any]:
    try:
        return crew.call(name, scheme.name, *arguments, limit_s=limit_s)
    except SchemeFailed as error:
        raise _Failed(scheme) from error


def compare_auto(
    crew: Crew,
    measured: Measured,
    dense: Scheme,
    auto: Scheme,
    schemes: Sequence[Scheme],
    budget_s: float,
    say: Say,
) -> dict[str, Any]:
    """`auto` beside dense and the fastest of what its fidelity allows, in pairs of neighbouring blocks."""
    allowed = [
        one
        for one in schemes
        if one.family == "ours" and one.name in HIGH and measured.rows[one.name].durations
    ]
    if not allowed:
        return {}
    best = min(allowed, key=lambda one: statistics.median(measured.rows[one.name].durations))
    rounds = play(
        crew, measured.cell, [dense, best, auto], measured.rows, budget_s, say, dense_every=DENSE_EVERY
    )
    rounds = [one for one in rounds if len(one) == 3]
    if not rounds:
        return {"failure": measured.rows[auto.name].failure}
    result: dict[str, Any] = {"best": best.name, "rounds": rounds}
    for name, other in (("to_dense", dense.name), ("to_best", best.name)):
        ratios = [one[auto.name] / one[other] for one in rounds]
        result[name] = {"median": statistics.median(ratios), "upper": arithmetic.upper_bound(ratios)}
    result["choice"] = measured.rows[auto.name].facts.get("choice")
    return result


def measure_drawn(crew: Crew, cell: Cell, schemes: Sequence[Scheme], budget_s: float, say: Say) -> Measured:
    """A link for `auto` alone: a short look at what it may choose from, then the pairs."""
    started = time.monotonic()
    measured = Measured(cell, load=os.getloadavg())
    chosen = [
        one for one in schemes if one.name in (DENSE, "auto") or (one.family == "ours" and one.name in HIGH)
    ]
    measured.rows = {one.name: Row(one.name, one.family, one.formula) for one in chosen}
    dense, auto = (next(one for one in chosen if one.name == name) for name in (DENSE, "auto"))
    plain = [one for one in chosen if one not in (dense, auto)]
    play(crew, cell, [dense, *plain], measured.rows, budget_s * 0.4, say)
    left_s = budget_s - (time.monotonic() - started)
    measured.auto = compare_auto(crew, measured, dense, auto, chosen, left_s, say)
    measured.seconds = time.monotonic() - started
    return measured
