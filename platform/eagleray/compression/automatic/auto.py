"""`auto`: one of the other compressors, chosen by measurement, and changed when the measurements do.

It is a compressor itself, whose plans hand each bucket to the chosen one's. All that it does happens between
two steps, in the engine's thread, before the first bucket of a step: `_life` says what, one `yield` a step.
All ranks go through it in step with each other: what they measure is shared over the wire, and rank 0's table
of predictions is everybody's, so that the same decision comes out of it.
"""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eagleray.compression import kernels
from eagleray.compression.automatic import choice, probe
from eagleray.compression.automatic.probe import Effort
from eagleray.compression.automatic.steps import Steps, slowest
from eagleray.compression.automatic.timeline import Backward, Exchange, Link, Task, replay
from eagleray.compression.automatic.volume import legs_of
from eagleray.compression.compressor import Compressor, Plan, kinds, make_compressor
from eagleray.compression.layout import Bucket, Layout, Place
from eagleray.compression.memory import Memory
from eagleray.compression.momentum import WARMUP_STEPS, Momentum
from eagleray.compression.optimizer import MomentumAdam
from eagleray.compression.wire import Step, Wire, ring_bytes
from eagleray.specs.compression import ADAM_PAIRS, CompressionSpec

WINDOW_S = 30.0
"""The ranks compare their steps' times once in so long."""
_MIN_WINDOW, _MAX_WINDOW, _MAX_PATIENCE = 20, 5000, 16
_log = logging.getLogger("eagleray.compression")


@dataclass(frozen=True)
class Choice:
    """What `auto` exchanges with, for the run's record."""

    kind: str
    reason: str
    """What, why, and the numbers: one line."""
    world_size: int
    step: int = 0
    """Since the hook was attached, from which it holds."""
    predicted_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds per step, by candidate."""
    measured_s: Mapping[str, float] = field(default_factory=dict)
    """The same of those that were tried."""
    is_settled: bool = False
    """False while it still measures."""

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return asdict(self)


class Auto:
    """See `Compressor`. `begin`, and what it calls, belong to the engine's thread."""

    name = "auto"
    keeps_dtype = True
    is_lossy = False

    def __init__(self, spec: CompressionSpec):
        """Take the fidelity and the candidates' settings."""
        self._spec = spec
        self._world_size = 1
        self._optimizer: Optimizer | None = None
        self._optimizer_kind: str | None = None
        self._parameters: Mapping[str, Tensor] = {}
        for kind in self._possible():
            self._make(kind)  # what does not fit is told at once, and the compiler, if needed, begins now
        self.kind = "none"
        """What is exchanged with in this step."""
        self.steps = Steps()
        self._efforts: dict[str, Effort] = {}
        self._kept: str | None = None
        """What an earlier run, or world size, had chosen."""
        self._life_: Iterator[None] | None = None
        self._number = 0

    def pair(self, optimizer: Optimizer | None, parameters: Mapping[str, Tensor]) -> None:
        """Take the model's optimizer, if it is known: it bars some candidates, and others need it."""
        self._optimizer, self._parameters = optimizer, parameters
        self._optimizer_kind = None if optimizer is None else type(optimizer).__name__.lower()
        if isinstance(optimizer, MomentumAdam) and len({g["betas"][0] for g in optimizer.param_groups}) > 1:
            self._optimizer_kind = "adam"  # the pairs need one beta1 for all

    def bind(self, layout: Layout, wire: Wire, memory: Memory) -> None:
        """See `Compressor`."""
        self.layout, self.wire, self.memory = layout, wire, memory
        self._world_size = wire.world_size
        self._bound: dict[str, Compressor] = {}
        self._life_, self.steps, self.kind = None, Steps(), "none"
        alone = "auto chose none: a rank alone sends nothing"
        pending = "auto has not chosen yet"
        self._choice = Choice("none", pending if wire.world_size > 1 else alone, wire.world_size)

    def sends_residual(self, place: Place) -> bool:
        """See `Compressor`."""
        return self.compressor().sends_residual(place)

    def plan(self, bucket: Bucket, device: torch.device) -> AutoPlan:
        """See `Compressor`."""
        return AutoPlan(self, bucket, device)

    def choice(self) -> Choice:
        """The last decision; from any thread."""
        return self._choice

    def state_dict(self) -> dict[str, Any]:
        """The choice and what the codecs cost: a later run measures the link only."""
        efforts = {kind: [one.num_slices, list(one.cpu_s)] for kind, one in self._efforts.items()}
        kind = self._choice.kind if self._choice.is_settled else None
        return {"kind": kind, "efforts": efforts, "record": self._choice.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start from it, before the first step."""
        self._kept = state["kind"]
        self._efforts = {kind: Effort(one[0], tuple(one[1])) for kind, one in state["efforts"].items()}

    def candidates(self) -> tuple[str, ...]:
        """What it may choose from in this step, least lossy first."""
        settled = self._has_settled()
        return tuple(kind for kind in self._possible() if settled or kind not in ADAM_PAIRS)

    def _possible(self) -> tuple[str, ...]:
        """What it may choose from at some time."""
        return choice.allowed(self._spec.fidelity, self._optimizer_kind, kinds(), self._world_size)

    def may_pair(self) -> bool:
        """Whether it may come to send a momentum."""
        return not {*ADAM_PAIRS}.isdisjoint(self._possible())

    def _has_settled(self) -> bool:
        """Whether Adam's variance may stay as it is: then no further step need travel uncompressed for it."""
        optimizer = self._optimizer
        if not isinstance(optimizer, MomentumAdam):
            return False
        needed = max(1, WARMUP_STEPS if self._spec.warmup_steps is None else self._spec.warmup_steps)
        names = [place.name for place in self.layout.places.values() if not place.is_dense]
        return all(optimizer.num_steps(self._parameters[name]) >= needed for name in names)

    def compressor(self) -> Compressor:
        """The one of this step."""
        if self.kind not in self._bound:
            self._bound[self.kind] = self._make(self.kind)
            self._bound[self.kind].bind(self.layout, self.wire, self.memory)
        return self._bound[self.kind]

    def begin(self, step: Step, device: torch.device) -> None:
        """A step begins: measure, decide and change, where it is time for it."""
        self.steps.begin(step.ready_s)
        self._number = step.number
        if self.wire.world_size == 1:
            return
        if self._life_ is None:
            self._life_ = self._life(device)
        with self.wire.aside():
            next(self._life_)

    def _life(self, device: torch.device) -> Generator[None]:
        """All of it: each `yield` is one step, with `self.kind`."""
        picked, predicted = yield from self._first(device)
        if picked == self.kind and picked == self._kept:
            self._settle(picked, predicted, {})
        else:
            yield from self._try(picked, predicted)
        while True:
            yield from self._watch()
            self._links = self._measure_links(device)
            predicted = self._predict()
            picked = choice.choose(predicted, self.kind)
            if picked == self.kind:
                self._patience = min(2 * self._patience, _MAX_PATIENCE)
            else:
                yield from self._try(picked, predicted, current=self.kind)

    def _first(self, device: torch.device) -> Generator[None, None, tuple[str, dict[str, float]]]:
        """Measure everything; returns the first pick and the predictions."""
        while any(probe.share(self.wire, device.type == "cpu" and kernels.is_building())):
            yield  # what is measured would be the torch operations that stand in for the compiled kernels
        self._patience = 1
        self._links = self._measure_links(device)
        self._shared = 1.0 if device.type == "cpu" and probe.cores_per_rank(self.wire) < 2 else 0.0
        self._measure_codecs(device)
        self._kept = probe.share(self.wire, self._kept)[0]
        if self._kept in self.candidates():
            self._adopt(self._kept)
        else:  # by the exchange alone, in one bucket: two steps later the backward pass is known
            harmless = choice.allowed("high", None, self.candidates(), self._world_size)
            self._adopt(
                choice.choose(self._predict_for(Backward((0.0,)), [self.layout.places.values()], harmless))
            )
        yield  # its buckets are not those of the steps after it
        yield
        if max(probe.share(self.wire, self.steps.period_s)) < choice.LONG_S:
            yield
        predicted = self._predict()
        return choice.choose(predicted, self._kept), predicted

    def _try(self, picked: str, predicted: dict[str, float], current: str | None = None) -> Generator[None]:
        """Let the picked one show itself beside its rivals, and settle on the winner."""
        tried = choice.contenders(predicted, picked, current)
        times: defaultdict[str, list[float]] = defaultdict(list)
        measured: dict[str, float] = {}
        least, most = choice.rounds_of(tried, predicted[picked])
        winners: list[str] = []
        while len(winners) < most and (len(winners) < least or len({*winners[-2:]}) > 1):
            for turn in choice.schedule(tried, predicted[picked], len(winners), self.kind):
                self._adopt(turn.kind)
                yield
                if turn.is_counted:
                    times[turn.kind].append(self.steps.period_s)
            measured = self._agreed({kind: choice.typical(values) for kind, values in times.items()})
            winners.append(choice.choose(measured, current))
        picked = winners[-1] if winners else picked
        self._settle(picked, predicted, measured)

    def _settle(self, picked: str, predicted: dict[str, float], measured: dict[str, float]) -> None:
        is_news = not self._choice.is_settled or picked != self._choice.kind
        self._adopt(picked)
        self._bound = {picked: self.compressor()}
        reason = choice.explain(picked, predicted, measured, self._link_text(), self.wire.world_size)
        self._choice = Choice(picked, reason, self.wire.world_size, self._number, predicted, measured, True)
        if is_news and self.wire.rank == 0:
            _log.info("compression: %s", reason)

    def _watch(self) -> Generator[None]:
        """Return when a step's time has drifted, or there is another candidate."""
        before = self.candidates()
        known = self._choice.measured_s.get(self.kind)
        base = known or self._choice.predicted_s[self.kind]
        is_first, num_windows = known is None, 0
        while True:
            window = min(max(_MIN_WINDOW, round(WINDOW_S / base)), _MAX_WINDOW)
            periods = []
            for _ in range(window):
                yield
                periods.append(self.steps.period_s)
            now = self._agreed({self.kind: statistics.median(periods)})[self.kind]
            measured = {**self._choice.measured_s, self.kind: now}
            self._choice = replace(self._choice, measured_s=measured)
            num_windows += 1
            if is_first:
                base, is_first = now, False
            if self.candidates() != before or (
                choice.has_drifted(now, base) and num_windows >= self._patience
            ):
                return

    def _predict(self) -> dict[str, float]:
        """Seconds per step of each candidate, by the last step's buckets on the slowest rank."""
        backward = slowest(probe.share(self.wire, self.steps.report()))
        return self._predict_for(
            backward, [bucket.places for bucket in self.steps.buckets], self.candidates()
        )

    def _predict_for(self, backward: Backward, buckets: Any, candidates: tuple[str, ...]) -> dict[str, float]:
        buckets = [tuple(places) for places in buckets]
        seconds = {
            kind: replay(
                backward,
                [self._task(kind, places) for places in buckets],
                self._links,
                at_once=self.wire.at_once,
                shared=self._shared,
            )
            for kind in candidates
        }
        return probe.share(self.wire, seconds)[0]

    def _task(self, kind: str, places: tuple[Place, ...]) -> Task:
        effort, numel = self._efforts[kind], sum(place.numel for place in places)
        legs = legs_of(self._spec, kind, places, self.wire.world_size, element_bytes=self.steps.element_bytes)
        num_slices = max(1, round(effort.num_slices * numel / probe.SAMPLE))
        return Task(legs, tuple(one * numel for one in effort.cpu_s), num_slices)

    def _measure_links(self, device: torch.device) -> dict[Exchange, Link]:
        """What each exchange costs that any candidate uses."""
        exchanges: list[Exchange] = ["swap", "sum"] if "int8_ring" in self._possible() else ["swap"]
        return probe.measure_links(
            self.wire, exchanges, device, ring_bytes(4 * self.layout.numel, self._world_size)
        )

    def _measure_codecs(self, device: torch.device) -> None:
        """Time the candidates, unless rank 0 knows them all from before; all ranks take the mean.

        What was measured on another number of ranks may have other legs, and serves no more then.
        """
        names, places = self._possible(), self.layout.places.values()
        known = probe.share(self.wire, {kind: len(one.cpu_s) for kind, one in self._efforts.items()})[0]
        wanted = {kind: len(legs_of(self._spec, kind, places, self.wire.world_size)) + 1 for kind in names}
        if not known.items() >= wanted.items():
            made = {kind: self._make(kind) for kind in names}
            made.update((k, one.quantised) for k, one in made.items() if isinstance(one, Momentum))
            self._efforts = probe.measure_codecs(made, self._spec, self.layout, device)
        own = {kind: (one.num_slices, one.cpu_s) for kind, one in self._efforts.items()}
        said = probe.share(self.wire, own)
        for kind, (num_slices, _) in said[0].items():
            phases = zip(*(one[kind][1] for one in said if kind in one), strict=True)
            self._efforts[kind] = Effort(num_slices, tuple(map(statistics.mean, phases)))

    def _agreed(self, seconds: dict[str, float]) -> dict[str, float]:
        """The mean over the ranks."""
        said = probe.share(self.wire, seconds)
        return {kind: statistics.mean(one[kind] for one in said) for kind in said[0]}

    def _adopt(self, kind: str) -> None:
        """Exchange with this one from now on; nothing is on its way."""
        if kind == self.kind:
            return
        self.kind = kind
        self.wire.scheme = f"auto: {kind}"
        self.memory.owe(self.sends_residual)

    def _make(self, kind: str) -> Compressor:
        made = make_compressor(self._spec.model_copy(update={"kind": kind}))
        if isinstance(made, Momentum) and self._optimizer is not None:
            made.pair(self._optimizer, self._parameters)
        return made

    def _link_text(self) -> str:
        link: Link = self._links["swap"]
        return f"{link.bytes_per_s * 8e-6:,.0f} Mbit/s with {link.latency_s * 1e3:.2g} ms"


class AutoPlan:
    """One bucket, with whichever compressor is chosen: see `Plan`."""

    def __init__(self, auto: Auto, bucket: Bucket, device: torch.device):
        self._auto, self._bucket, self._device = auto, bucket, device
        self._plans: dict[str, tuple[Compressor, Plan]] = {}
        self._copy: Tensor | None = None

    def run(self, gradient: Tensor, step: Step) -> Generator[None, None, int]:
        """See `Plan`."""
        auto = self._auto
        if step.bucket == 0:
            auto.steps.element_bytes = gradient.element_size()
            auto.begin(step, self._device)
            auto.memory.repay(self._bucket.parts, gradient, step.loss_scale)  # where it has changed just now
        auto.steps.add(self._bucket, step.ready_s)
        compressor = auto.compressor()
        work = gradient
        if gradient.dtype != torch.float32 and not compressor.keeps_dtype:
            work = torch.empty_like(gradient, dtype=torch.float32) if self._copy is None else self._copy
            self._copy = work.copy_(gradient)
        bad = yield from self._plan_of(compressor).run(work, step)
        if work is not gradient:
            gradient.copy_(work)
        auto.steps.done()
        return bad

    def _plan_of(self, compressor: Compressor) -> Plan:
        if self._auto.choice().is_settled:  # the others' buffers are not needed any more
            self._plans = {k: v for k, v in self._plans.items() if k == compressor.name}
        found = self._plans.get(compressor.name)
        if found is None or found[0] is not compressor:
            found = self._plans[compressor.name] = (compressor, compressor.plan(self._bucket, self._device))
        return found[1]
