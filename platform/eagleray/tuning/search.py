"""What is tried: pure functions of the spec, the trial's number, and what earlier trials came to."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

from eagleray.capacity.placement import Capacity
from eagleray.specs import TrainSpec, TuneSpec, validate
from eagleray.specs.axes import Choice, LogUniform, Uniform, draw, enumerated
from eagleray.specs.train import ScalingSpec

UNSEEN_CAPACITY = 8
"""Trials at once where an autoscaler may start nodes that cannot be seen from here."""


class Suggester(Protocol):
    """Names the values of the next trial."""

    def suggest(self, number: int) -> dict[str, Any]:
        """The values of trial `number` by dotted field; called once for each, in order."""
        ...

    def tell(self, number: int, values: Mapping[str, Any], value: float | None) -> None:
        """What a trial came to; None where it failed. May be one of an earlier driver."""
        ...


class GridSuggester:
    """Every combination in order; the last axis changes fastest."""

    def __init__(self, spec: TuneSpec):
        self._axes = {path: list(enumerated(axis) or ()) for path, axis in spec.space.items()}

    def suggest(self, number: int) -> dict[str, Any]:
        """Combination `number` (from 1)."""
        rest, found = number - 1, {}
        for path, values in reversed(self._axes.items()):
            rest, index = divmod(rest, len(values))
            found[path] = values[index]
        return {path: found[path] for path in self._axes}

    def tell(self, number: int, values: Mapping[str, Any], value: float | None) -> None:
        """Nothing: a grid does not learn."""


class RandomSuggester:
    """Drawn from the seed and the number alone, so that a resumed search draws the same."""

    def __init__(self, spec: TuneSpec):
        self._space, self._seed = spec.space, spec.seed

    def suggest(self, number: int) -> dict[str, Any]:
        """One draw per axis."""
        source = random.Random(f"{self._seed} {number}")
        return {path: draw(axis, source.random()) for path, axis in self._space.items()}

    def tell(self, number: int, values: Mapping[str, Any], value: float | None) -> None:
        """Nothing: each draw is by itself."""


class TpeSuggester:
    """Optuna's TPE through its ask-and-tell interface; trials that still run repel new ones."""

    def __init__(self, spec: TuneSpec):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._spec, self._space = optuna, spec, spec.space
        self._distributions = {path: self._distribution(axis) for path, axis in spec.space.items()}
        self._study: Any = None
        self._earlier: list[Any] = []
        self._asked: dict[int, Any] = {}

    def suggest(self, number: int) -> dict[str, Any]:
        """What the sampler asks for."""
        if self._study is None:
            self._study = self._new_study(number)
        trial = self._asked[number] = self._study.ask(self._distributions)
        return {path: self._value(path, drawn) for path, drawn in trial.params.items()}

    def tell(self, number: int, values: Mapping[str, Any], value: float | None) -> None:
        """Let the sampler learn from it."""
        states = self._optuna.trial.TrialState
        state = states.FAIL if value is None else states.COMPLETE
        if number in self._asked:
            self._study.tell(self._asked.pop(number), value, state)
            return
        trial = self._optuna.trial.create_trial(
            state=state,
            value=value,
            params={path: self._param(path, value) for path, value in values.items()},
            distributions=self._distributions,
        )
        self._earlier.append(trial) if self._study is None else self._study.add_trial(trial)

    def _new_study(self, number: int) -> Any:
        """A study that knows the earlier trials; `number` is the first that it will be asked for.

        It is part of the seed: otherwise a resumed search would draw again what the first driver drew first.
        """
        assert self._spec.searcher.kind == "tpe"
        sampler = self._optuna.samplers.TPESampler(
            seed=(self._spec.seed * 1_000_003 + number) % 2**32,
            n_startup_trials=self._spec.searcher.num_random or max(4, self._spec.num_trials // 4),
            constant_liar=True,
        )
        direction = "maximize" if self._spec.is_max_better else "minimize"
        study = self._optuna.create_study(direction=direction, sampler=sampler)
        study.add_trials(self._earlier)
        return study

    def _distribution(self, axis: Any) -> Any:
        """A choice is one among indices: Optuna takes no lists, and stores others with a warning."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if isinstance(axis, Uniform | LogUniform):
            return FloatDistribution(axis.min, axis.max, log=isinstance(axis, LogUniform))
        if isinstance(axis, Choice):
            return CategoricalDistribution(range(len(axis.values)))
        values = enumerated(axis)
        assert values is not None
        return IntDistribution(0, len(values) - 1)

    def _value(self, path: str, drawn: Any) -> Any:
        values = enumerated(self._space[path])
        return drawn if values is None else values[drawn]

    def _param(self, path: str, value: Any) -> Any:
        values = enumerated(self._space[path])
        return value if values is None else list(values).index(value)


def make_suggester(spec: TuneSpec) -> Suggester:
    """The suggester that `spec.searcher` names."""
    kinds = {"grid": GridSuggester, "random": RandomSuggester, "tpe": TpeSuggester}
    return kinds[spec.searcher.kind](spec)


def trial_spec(spec: TuneSpec, values: Mapping[str, Any]) -> TrainSpec:
    """The train spec of the trial with these values.

    Raises: SpecError: they do not go together.
    """
    return validate(TrainSpec, spec.trial_table(values), name=describe(values))


def describe(values: Mapping[str, Any]) -> str:
    """For instance "optimizer.lr=0.01 model.hidden=[16]"."""
    return " ".join(f"{path}={short(value)}" for path, value in values.items())


def short(value: Any) -> str:
    """A value as people write it: floats with 4 digits, lists without spaces."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(short, value))}]"
    return str(value)


def max_concurrent(spec: TuneSpec, capacity: Capacity) -> int:
    """How many trials may run at once: what the spec says, within what the cluster can hold.

    A trial's workers are placed all at once or not at all, and its driver holds no CPU, so trials can never
    wait for each other. More of them than fit would only ask the autoscaler for nodes that it cannot start.
    """
    scaling = spec.scaling
    room = capacity.num_placeable(resources_of(scaling), scaling.label_selector) // units_of(scaling)
    if not capacity.is_complete:
        room = max(room, UNSEEN_CAPACITY)
    wanted = spec.budget.max_concurrent_trials or spec.num_trials
    return max(1, min(wanted, room, spec.num_trials))


def resources_of(scaling: ScalingSpec) -> dict[str, float]:
    """What one worker of a trial holds."""
    found = {"CPU": scaling.cpus_per_worker, "GPU": float(scaling.gpus_per_worker)}
    return {name: amount for name, amount in found.items() if amount > 0}


def units_of(scaling: ScalingSpec) -> int:
    """Workers of a trial, and those that wait beside them: the units of its claim."""
    return 1 if scaling.num_workers == 1 else scaling.num_workers + scaling.spares


def describe_resources(scaling: ScalingSpec) -> str:
    """For instance "0.5 CPU" or "2 workers with 1 CPU and 1 GPU"."""
    held = " and ".join(f"{amount:g} {name}" for name, amount in resources_of(scaling).items())
    return held if scaling.num_workers == 1 else f"{scaling.num_workers} workers with {held}"
