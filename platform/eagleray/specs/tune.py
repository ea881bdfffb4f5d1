"""`TuneSpec`: a search over fields of a train spec."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from eagleray.errors import SpecError
from eagleray.specs.axes import Axis, Choice, axes_of, draw, enumerated, nested, typical
from eagleray.specs.base import FileSpec, Name, Problem, Spec, load, located, problems
from eagleray.specs.compression import CompressionSpec
from eagleray.specs.strategies import AshaScheduler, SchedulerSpec, SearcherSpec, TpeSearcher
from eagleray.specs.train import ScalingSpec, TrainSpec

NUM_DRAWS = 24
"""So many combinations are tried before a value counts as one that fits no trial."""


def _train_spec(value: Any, info: ValidationInfo) -> Any:
    """The train spec that a path names; a table as it is."""
    if not isinstance(value, str):
        return value
    path = Path((info.context or {}).get("base_dir") or ".", value)
    try:
        return load(TrainSpec, path)
    except SpecError as error:
        raise located([((), line, value) for line in str(error).splitlines()]) from None


def _as_written(spec: TrainSpec) -> dict[str, Any]:
    """Only what the user wrote: a space may change a `kind`, and then the other kind's defaults hold."""
    return spec.model_dump(mode="json", exclude_unset=True)


Base = Annotated[
    TrainSpec,
    BeforeValidator(_train_spec),
    PlainSerializer(_as_written),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}], "title": "Base"}),
]


def _allow_tables(schema: dict[str, Any]) -> None:
    """Let the JSON schema take dotted keys as TOML reads them: tables in tables."""
    schema["additionalProperties"] = {"anyOf": [schema["additionalProperties"], {"type": "object"}]}


Space = Annotated[
    dict[str, Axis],
    BeforeValidator(axes_of),
    Field(json_schema_extra=_allow_tables),
]


class BudgetSpec(Spec):
    """How much is tried."""

    num_trials: int | None = Field(default=None, ge=1)
    """Needed but for a grid, which has as many as there are combinations."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Where not given: as many as the cluster's node types can hold at once."""
    time_s: float | None = Field(default=None, gt=0)
    """Wall-clock seconds, after which the trials that still run are ended, and count with what they
    reached. A resumed search gets them anew."""


class TuneSpec(FileSpec):
    """A search: many trials, each a training run of the base with some of its fields changed."""

    kind: Literal["tune"]
    name: Name
    """Lower-case letters, digits, dots, dashes; ids of searches start with it."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the search alone; all trials have the base's, unless it is in the space."""
    base: Base
    """A train spec: the path of its file, or the table itself."""
    overrides: dict[str, Any] = {}
    """Fields of the train spec that all trials have otherwise than the base, for instance fewer epochs."""
    space: Space
    """Dotted field of the train spec -> what it may be."""
    searcher: SearcherSpec = TpeSearcher(kind="tpe")
    scheduler: SchedulerSpec = AshaScheduler(kind="asha")
    metric: Literal["validation_accuracy", "validation_loss"] = "validation_accuracy"
    mode: Literal["min", "max"] | None = None
    """Where not given: `min` for the loss, `max` for the accuracy."""
    budget: BudgetSpec
    scaling: ScalingSpec = ScalingSpec()
    """What the workers of one trial get, in place of the base's. A trial with one worker may have a part of
    a CPU, and then shares its node with others."""

    @property
    def is_max_better(self) -> bool:
        """Whether a higher metric is a better one."""
        return self.mode == "max" if self.mode else not self.metric.endswith("loss")

    @property
    def num_combinations(self) -> int | None:
        """How many different trials the space has; None where an axis is continuous."""
        found = 1
        for axis in self.space.values():
            values = enumerated(axis)
            if values is None:
                return None
            found *= len(values)
        return found

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        wanted, combinations = self.budget.num_trials, self.num_combinations
        if self.searcher.kind == "grid":
            assert combinations is not None
            return combinations if wanted is None else min(wanted, combinations)
        assert wanted is not None
        return wanted

    def trial_table(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The train spec of the trial with these values by dotted field, not yet validated."""
        own = {
            "compression": {"rehearse": True},  # a format shows in a trial of one worker, too
            "checkpoint": {"at_evaluations": True},  # every value that was measured has its weights
        }
        table = _laid_over(_as_written(self.base), own)
        table = _laid_over(table, nested(self.overrides), is_kind_new=True)
        table["scaling"] = self.scaling.model_dump(mode="json")
        table = _laid_over(table, nested(values))
        if "compression.kind" in values:  # a trial of int8 has no use for the ratio that is there for topk
            table["compression"] = CompressionSpec.without_others(table["compression"])
        return table

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> TuneSpec:
        found = list(self._budget_problems()) or list(self._space_problems(info.context))
        if found:
            raise located(found)
        return self

    def _budget_problems(self) -> Iterator[Problem]:
        if self.searcher.kind != "grid":
            if self.budget.num_trials is None:
                yield ("budget", "num_trials"), f"is required with searcher {self.searcher.kind!r}", None
            return
        for path, axis in self.space.items():
            if enumerated(axis) is None:
                text = (
                    f"{axis.kind!r} has no end of values, which a grid cannot try; use 'choice', 'grid' or "
                    "'randint' here, or another searcher"
                )
                yield ("space", path), text, None

    def _space_problems(self, context: Any) -> Iterator[Problem]:
        """What keeps the fields and values of the space from making a train spec.

        Where nothing does, the paths among the overrides are absolute afterwards, as those of the base are.
        """
        if not self.space:
            yield ("space",), "is empty; name a field of the train spec and what it may be", None
            return
        wrong = [path for path in self.space if path.partition(".")[0] in ("scaling", "kind", "name", "code")]
        for path in wrong:
            yield ("space", path), "all trials have this in common; take it out of the space", None
        if wrong:
            return
        combinations = list(itertools.islice(self._combinations(), NUM_DRAWS))
        fitting = next((values for values in combinations if not self._problems_of(values, context)), None)
        if fitting is None:
            yield from map(self._placed, self._problems_of(combinations[0], context))
            return
        trial = TrainSpec.model_validate(self.trial_table(fitting), context=context)
        yield from self._metric_problems(trial)
        resolved = _chosen(trial.model_dump(mode="json"), nested(self.overrides))
        self.overrides.clear()
        self.overrides.update(resolved)
        for path, axis in self.space.items():
            for value in typical(axis):
                tried = [{**values, path: value} for values in (fitting, *combinations)]
                reasons = (self._problems_of(one, context) for one in tried)
                if (first := next(reasons)) and all(reasons):
                    yield self._value_problem(path, value, first)
                    break

    def _combinations(self) -> Iterator[dict[str, Any]]:
        """The first values of all axes, then drawn ones."""
        yield {path: typical(axis)[0] for path, axis in self.space.items()}
        source = random.Random(0)
        while True:
            yield {path: draw(axis, source.random()) for path, axis in self.space.items()}

    def _problems_of(self, values: Mapping[str, Any], context: Any) -> list[tuple[str, str]]:
        """Dotted path and sentence of what is wrong with the trial; empty where it is fine."""
        try:
            table = self.trial_table(values)
        except _NotATable as error:
            return [error.args]
        try:
            TrainSpec.model_validate(table, context=context)
        except ValidationError as error:
            return list(problems(TrainSpec, table, error))
        return []

    def _placed(self, problem: tuple[str, str]) -> Problem:
        """The problem at the place of this file where its cause is."""
        location, text = problem
        for path in self.space:
            if _are_related(location, path):
                return ("space", path), text, None
        for path in _leaves(nested(self.overrides)):
            if _are_related(location, path):
                return ("overrides", path), text, None
        return ("base", *([location] if location else [])), text, None

    def _value_problem(self, path: str, value: Any, reasons: list[tuple[str, str]]) -> Problem:
        location, text = next((one for one in reasons if _are_related(one[0], path)), reasons[0])
        where = "" if _are_related(location, path) or not location else f"{location}: "
        found = "" if repr(value) in text or "(found" in text else f"{value!r}: "
        place = ("values",) if isinstance(self.space[path], Choice) else ()
        hint = "; 'randint' draws whole numbers" if "valid integer" in text and not place else ""
        return ("space", path, *place), f"{found}{where}{text}{hint}", None

    def _metric_problems(self, trial: TrainSpec) -> Iterator[Problem]:
        if trial.data.split.validation == 0:
            yield ("metric",), f"{self.metric} needs data.split.validation above 0 in the base", None
        if self.metric == "validation_accuracy" and trial.loss.kind == "mse":
            yield ("metric",), "loss.kind 'mse' has no accuracy; use validation_loss", None


class _NotATable(Exception):
    """A dotted path goes through a value. Its arguments: the path and the sentence."""


def _laid_over(
    table: Mapping[str, Any], layer: Mapping[str, Any], above: str = "", *, is_kind_new: bool = False
) -> dict[str, Any]:
    """`table` with `layer`'s values in the place of its own, table by table.

    With `is_kind_new` a table that names another `kind` takes the place of the whole old one.
    """
    made = dict(table)
    for key, value in layer.items():
        path, old = above + key, made.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            is_other = is_kind_new and value.get("kind", old.get("kind")) != old.get("kind")
            under = {} if is_other else old
            made[key] = _laid_over(under, value, f"{path}.", is_kind_new=is_kind_new)
        elif isinstance(value, Mapping) and old is not None:
            raise _NotATable(path, "is a value, not a table; it has no fields")
        else:
            made[key] = value
    return made


def _chosen(table: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `table` in the places that `shape` has."""
    return {
        key: _chosen(table[key], inner) if isinstance(inner, Mapping) and inner else table[key]
        for key, inner in shape.items()
    }


def _leaves(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key


def _are_related(one: str, other: str) -> bool:
    """Whether one dotted path is the other, or leads to it."""
    return one != "" and (f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."))
