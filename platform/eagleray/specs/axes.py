"""The axes of a search space: what one field of a train spec may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eagleray.specs.base import Spec


class Choice(Spec):
    """One of the values."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)


class _Range(Spec):
    min: float
    max: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) exceeds max ({self.max:g}); lower one or raise the other")
        return self


class Uniform(_Range):
    """Any number between min and max."""

    kind: Literal["uniform"]


class LogUniform(_Range):
    """Any number between min and max; each order of magnitude alike."""

    kind: Literal["loguniform"]
    min: float = Field(gt=0)


class Randint(Spec):
    """A whole number from min to max, both included."""

    kind: Literal["randint"]
    min: int
    max: int
    step: int = Field(default=1, ge=1)
    """Only min, min + step, and so on."""

    @model_validator(mode="after")
    def _ordered(self) -> Randint:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) exceeds max ({self.max}); lower one or raise the other")
        return self


class Grid(_Range):
    """`num` evenly spaced numbers from min to max, both included."""

    kind: Literal["grid"]
    num: int = Field(ge=2)
    scale: Literal["linear", "log"] = "linear"
    """`log`: each is the same multiple of the one before."""

    @model_validator(mode="after")
    def _log_of_positive(self) -> Grid:
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"min ({self.min:g}) must be above 0 on a log scale")
        return self


Axis = Annotated[Choice | Uniform | LogUniform | Randint | Grid, Field(discriminator="kind")]
_AXIS_KEYS = {"values", "min", "max", "num", "step", "scale"}
"""By these an axis is known that lacks its `kind`."""
AnyAxis = Choice | Uniform | LogUniform | Randint | Grid


def enumerated(axis: AnyAxis) -> Sequence[Any] | None:
    """All values of the axis in their order; None where it is continuous."""
    match axis:
        case Choice(values=values):
            return values
        case Randint(min=low, max=high, step=step):
            return range(low, high + 1, step)
        case Grid(num=num):
            return [_number(_between(axis, i / (num - 1), axis.scale == "log")) for i in range(num)]
        case _:
            return None


def draw(axis: AnyAxis, u: float) -> Any:
    """The value at `u` in [0, 1) of the axis."""
    values = enumerated(axis)
    if values is not None:
        return values[int(u * len(values))]
    assert isinstance(axis, Uniform | LogUniform)
    return _between(axis, u, isinstance(axis, LogUniform))


def typical(axis: AnyAxis) -> Sequence[Any]:
    """Values that stand for all when types and limits are checked: each, or the ends and one between."""
    if isinstance(axis, Choice):
        return axis.values
    values = enumerated(axis)
    return (
        values[:: max(1, len(values) - 1)] if values is not None else [draw(axis, u) for u in (0, 1, 0.618)]
    )


def axes_of(value: Any) -> Any:
    """A space whose fields are written as nested tables, dotted keys or both, with dotted keys alone.

    `optimizer.lr = {…}` and `"optimizer.lr" = {…}` say the same in TOML, and `--set space.optimizer.lr.max`
    changes either. An axis is a table whose `kind` is text (`compression.kind` may be a field).
    """
    if not isinstance(value, Mapping):
        return value
    return dict(_axes(nested(value)))


def nested(table: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with its dotted keys as tables in tables; what is given twice is laid over."""
    made: dict[str, Any] = {}
    for key, value in table.items():
        *tables, last = str(key).split(".")
        here = made
        for name in tables:
            inner = here.get(name)
            here[name] = here = dict(inner) if isinstance(inner, Mapping) else {}
        inner = nested(value) if isinstance(value, Mapping) else value
        old = here.get(last)
        here[last] = _merged(old, inner) if isinstance(old, Mapping) and isinstance(inner, Mapping) else inner
    return made


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(old[key], value)
        if isinstance(old.get(key), Mapping) and isinstance(value, Mapping)
        else value
        for key, value in new.items()
    }
    return {**old, **both}


def _axes(table: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if not isinstance(value, Mapping) or isinstance(value.get("kind"), str) or _AXIS_KEYS & value.keys():
            found.append((above + key, value))
        else:
            found += _axes(value, f"{above}{key}.")
    return found


def _between(axis: _Range, u: float, is_log: bool) -> float:
    if u in (0, 1):
        return axis.max if u else axis.min
    if is_log:
        return math.exp(math.log(axis.min) + u * (math.log(axis.max) - math.log(axis.min)))
    return axis.min + u * (axis.max - axis.min)


def _number(value: float) -> float | int:
    """Without the last digits' noise, and whole where it is."""
    rounded = float(f"{value:.12g}")
    return int(rounded) if rounded.is_integer() else rounded
