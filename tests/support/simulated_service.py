"""A service that is simulated by a virtual clock: replicas, gateways in front, reports that come late."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count, pairwise

import numpy as np

from eagleray.serving.objective import Decision, Memory, Seen, Terms, decide
from eagleray.serving.rates import Count
from eagleray.serving.replica.fit import Line

LINE = Line(fixed_s=10e-3, per_sample_s=1e-3)
"""In batches of 16 within 100 ms a replica computes 615 samples a second."""
TERMS = Terms(objective_s=0.1, max_batch_size=16, minimum=1, maximum=20, idle_s=30.0)
MU = 16 / LINE.seconds(16)
STEP_S = 0.2
WINDOW = 64
"""Requests that all gateways let through to each replica."""


@dataclass
class Replica:
    """What one has counted, and as it last said so."""

    name: str
    born_s: float
    came: float = 0.0
    done: float = 0.0

    def __post_init__(self) -> None:
        self.said_s = self.born_s
        self.counts = (Count(self.born_s, 0.0, self.born_s, 0.0),) * 2

    def report(self, time_s: float) -> None:
        if time_s >= self.said_s + 1.0 - 1e-9:
            self.said_s = time_s
            before = [(count.last_s, count.last) for count in self.counts]
            self.counts = (Count(*before[0], time_s, self.came), Count(*before[1], time_s, self.done))


@dataclass
class Gateway:
    """Counts what comes, and says so once a second, a little late."""

    name: str
    phase_s: float = 0.0
    max_queued: int = 100
    late_s: float = 0.2
    arrived: int = 0
    queued: int = 0
    told: tuple[Count, int] | None = None
    """What Serve's controller knows: what arrived, and what waits."""

    def __post_init__(self) -> None:
        self.next_s = self.phase_s
        self.before = (self.phase_s - 1.0, 0)
        self.on_its_way: tuple[float, tuple[Count, int]] | None = None

    def report(self, time_s: float) -> None:
        if self.on_its_way and time_s >= self.on_its_way[0] - 1e-9:
            self.told, self.on_its_way = self.on_its_way[1], None
        if time_s >= self.next_s - 1e-9:
            self.next_s += 1.0
            said = Count(*self.before, time_s, self.arrived), self.queued
            self.before, self.on_its_way = (time_s, self.arrived), (time_s + self.late_s, said)


def _parts(number: int, parts: int) -> list[int]:
    return [(number + index) // parts for index in range(parts)]


@dataclass
class Service:
    """Replicas that compute what comes, report once a second, and take a while to start."""

    rate: float
    terms: Terms = TERMS
    line: Line = LINE
    true_mu: float = MU
    cold_start_s: float = 5.0
    seed: int = 0
    time_s: float = 0.0
    target: int = 1
    backlog: float = 0.0
    memory: Memory = field(default_factory=Memory)
    replicas: list[Replica] = field(default_factory=lambda: [Replica("r0", 0.0)])
    starting: list[float] = field(default_factory=list)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    gateways: list[Gateway] = field(default_factory=list)
    """In front, where there are any: with a queue each, and a window to the replicas."""

    def __post_init__(self) -> None:
        self.drawn = np.random.default_rng(self.seed)
        self.numbers, self.first = count(1), self.target

    def step(self) -> None:
        self.time_s += STEP_S
        self.replicas += [
            Replica(f"r{next(self.numbers)}", self.time_s) for ready in self.starting if ready <= self.time_s
        ]
        self.starting = [ready for ready in self.starting if ready > self.time_s]
        del self.replicas[self.target :]
        came = int(self.drawn.poisson(self.rate * STEP_S))
        if self.gateways:
            came = self._through_gateways(came)
        self.backlog += came
        done = min(self.backlog, len(self.replicas) * self.true_mu * STEP_S)
        self.backlog -= done
        for replica in self.replicas:
            replica.came += came / len(self.replicas)
            replica.done += done / len(self.replicas)
            replica.report(self.time_s)
        self.ask()

    def _through_gateways(self, came: int) -> int:
        """Samples that are sent on to replicas."""
        sent = 0
        for gateway, part in zip(self.gateways, _parts(came, len(self.gateways)), strict=True):
            gateway.arrived += part
            gateway.queued += part
            # What is answered within the step makes room within it.
            most = len(self.replicas) * (WINDOW + self.true_mu * STEP_S) - self.backlog
            passed = min(gateway.queued, max(0, int(most / len(self.gateways))))
            gateway.queued = min(gateway.queued - passed, gateway.max_queued)
            sent += passed
            gateway.report(self.time_s)
        return sent

    def seen(self) -> Seen:
        waited_s = self.backlog / max(len(self.replicas) * self.true_mu, 1e-9)
        return Seen(
            time_s=self.time_s,
            running=len(self.replicas),
            target=self.target,
            came={replica.name: replica.counts[0] for replica in self.replicas},
            done={replica.name: replica.counts[1] for replica in self.replicas},
            told={gateway.name: gateway.told[0] for gateway in self.gateways if gateway.told},
            backlog=self.backlog + sum(gateway.told[1] for gateway in self.gateways if gateway.told),
            line=self.line if self.replicas else None,
            p95_s=waited_s + 2 * self.line.seconds(8) if self.rate else None,
            waited_s=waited_s,
            is_asked=self.backlog > 0 or any(gateway.told and gateway.told[1] for gateway in self.gateways),
        )

    def ask(self) -> None:
        decision, self.memory = decide(self.seen(), self.terms, self.memory)
        if decision.wanted != self.target:
            self.decisions.append((self.time_s, decision))
        self.target = decision.wanted
        new = self.target - len(self.replicas) - len(self.starting)
        self.starting += [self.time_s + self.cold_start_s] * new
        del self.starting[max(0, self.target - len(self.replicas)) :]

    def settle(self, seconds: float) -> Service:
        """As `run`; what was decided until then is forgotten."""
        self.run(seconds)
        self.decisions.clear()
        self.first = self.target
        return self

    def run(self, seconds: float, rate: float | None = None) -> Service:
        self.rate = self.rate if rate is None else rate
        for _ in range(round(seconds / STEP_S)):
            self.step()
        return self

    @property
    def reversals(self) -> int:
        """How often it went down after it went up, or up after down."""
        numbers = [self.first, *(decision.wanted for _, decision in self.decisions)]
        signs = [np.sign(after - before) for before, after in pairwise(numbers)]
        return sum(one != other for one, other in pairwise(signs))
