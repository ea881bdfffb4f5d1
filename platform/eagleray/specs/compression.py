"""`CompressionSpec`: how a run's gradients are sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from eagleray.specs.base import Spec, in_words, located

ADAM_PAIRS = ("onebit_adam", "fourbit_adam")
"""Kinds of compression that send Adam's momentum, and so need it."""


Kind = Literal[
    "none",
    "fp16",
    "bf16",
    "int8",
    "int4",
    "int8_ring",
    "topk",
    "randomk",
    "powersgd",
    "onebit_adam",
    "fourbit_adam",
    "auto",
]
"""Of compression: those that come with Eagleray."""
Fidelity = Literal["exact", "high", "medium", "low"]
_OWN_KIND = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
OwnKind = Annotated[str, Field(pattern=_OWN_KIND)]
_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "fidelity": ("auto",),
    "block_size": ("int8", "int4", "int8_ring", "randomk", *ADAM_PAIRS, "auto"),
    "ratio": ("topk", "randomk", "auto"),
    "rank": ("powersgd", "auto"),
    "warmup_steps": ("topk", "powersgd", *ADAM_PAIRS, "auto"),
    "momentum_correction": ("topk",),
}
"""By field of a compression: the kinds that use it. One of the user's own may use any, the others all."""


class CompressionSpec(Spec):
    """How gradients are sent. Norms, biases and small parameters always travel uncompressed."""

    kind: Kind | OwnKind = "auto"
    """`auto` measures the network and chooses, among what `fidelity` and the optimizer allow. `module:name`
    is a compressor of your own (docs/compression.md), in the spec's `code` or installed."""
    fidelity: Fidelity = "high"
    """How much `auto` may lose: exact: nothing; high: bf16, fp16, int8, int8_ring too; medium: int4,
    onebit_adam and fourbit_adam too; low: powersgd, topk and randomk too. Where parameters are float64, it
    is exact whatever this says."""
    block_size: int | None = Field(default=None, ge=8, le=4096)
    """Elements that share a scale, a power of two (int8, int4, int8_ring, randomk and the Adam pairs). Where
    not given: 256, and 128 for four bits."""
    ratio: float = Field(default=0.01, gt=0, lt=1)
    """Share of the elements that is sent (topk, randomk)."""
    rank: int = Field(default=4, ge=1)
    """Of the factors that stand for a matrix (powersgd)."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps that send more than later ones: topk grows sparse, powersgd starts uncompressed, the Adam pairs
    settle their variance. Where not given: what suits the kind."""
    momentum_correction: bool = False
    """topk sends the momentum's largest elements instead of the gradient's; the optimizer's own momentum must
    then be 0."""
    residuals: Literal["mean", "per_rank"] = "mean"
    """What a checkpoint keeps of the errors that are still to be sent: their mean over the workers, for any
    number of workers, or each worker's own, for a resumed run that is equal to the last bit at the same
    number."""
    dense_below: int = Field(default=1024, ge=0)
    """Parameters of fewer elements travel uncompressed."""
    keep_dense: tuple[str, ...] = ()
    """Names of more parameters that do."""
    max_skipped_steps: int = Field(default=3, ge=1)
    """A step whose gradient is not finite on some worker is skipped by all; with so many in a row the run
    ends and names the parameter. (With precision fp16 steps are skipped until the gradient scaler's scale
    fits; there it ends where the scale falls below 1.)"""
    rehearse: bool = False
    """One worker alone sends nothing. With this it encodes and decodes its gradients all the same, so that a
    search over formats sees what they do to the result."""

    @field_validator("kind", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """One sentence in place of one for each half of the union."""
        if value not in get_args(Kind) and not (isinstance(value, str) and re.match(_OWN_KIND, value)):
            known = ", ".join(map(repr, get_args(Kind)))
            raise ValueError(f"input should be {known}, or 'module:name' of your own (found {value!r})")
        return value

    @field_validator("block_size")
    @classmethod
    def _power_of_two(cls, value: int | None) -> int | None:
        if value is not None and value & (value - 1):
            raise ValueError(f"{value} is not a power of two; blocks have to fill tiles of 4096 elements")
        return value

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> CompressionSpec:
        fields = type(self).fields_by_kind().get(self.kind, frozenset())
        found = [
            ((name,), f"{_users(name)}, and compression.kind is {self.kind!r}; leave it out", value)
            for name, value in self
            if fields and name not in fields and value != type(self).model_fields[name].default
        ]
        if found:
            raise located(found)
        return self

    @classmethod
    def fields_by_kind(cls) -> dict[str, frozenset[str]]:
        """See `Spec`. A field of another kind may be there, but only with its default."""
        return {
            kind: frozenset(name for name in cls.model_fields if kind in _ONLY_FOR.get(name, (kind,)))
            for kind in get_args(Kind)
        }

    @classmethod
    def without_others(cls, table: Mapping[str, Any]) -> dict[str, Any]:
        """The table without the fields that only other kinds than its own use."""
        others = frozenset(cls.model_fields) - cls.fields_by_kind().get(
            str(table["kind"]), frozenset(cls.model_fields)
        )
        return {name: value for name, value in table.items() if name not in others}

    if not TYPE_CHECKING:  # which knows the fields

        def __init__(self, /, **values: Any):
            """As pydantic's, for scripts. Raises: SpecError: one line per problem, in words."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise in_words(type(self), values, error, name=type(self).__name__) from None

        # Else it would be called for a table inside a file, too, whose problems need their place there.
        __init__.__pydantic_base_init__ = True


def sparse_under(optimizer: str, kind: str, *, has_momentum: bool) -> str | None:
    """What few numbers of a gradient at a time cost an optimizer; None where nothing is to be said.

    Args:
        optimizer: its kind, or its class.
        kind: of compression.
        has_momentum: the compression has the momentum (`momentum_correction`).
    """
    if kind not in ("topk", "randomk") or has_momentum or optimizer.lower() == "sgd":
        return None
    hint = (
        "momentum_correction, with betas[0] = 0, costs less; or take int4" if kind == "topk" else "take int4"
    )
    return (
        f"{kind} is made for SGD: {optimizer} divides by the root of a variance that few numbers reach, "
        f"which costs accuracy (docs/compression.md); {hint}"
    )


def _users(field: str) -> str:
    """Which kinds use a field of the compression's, as a beginning of a sentence."""
    *others, last = _ONLY_FOR[field]
    return f"only {', '.join(others)} and {last} use it" if others else f"only {last} uses it"
