"""A function of the user's own that returns arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from eagleray.data import in_memory
from eagleray.data.parts import Array, Arrays, Dataset, Finish, as_they_are
from eagleray.errors import DataError, SpecError
from eagleray.specs import IGNORED_TARGET, Signature, validate
from eagleray.specs.data import ModuleData
from eagleray.specs.functions import import_function, told

_RETURNS = "(inputs, targets, signature table)"


def open_module(spec: ModuleData, is_raw: bool = False) -> Dataset:
    """The arrays that `module:function` returns, checked, split and measured.

    It returns (inputs [N, ...], targets [N, ...], table): the table holds `input_kind` and what else the
    signature needs (`target_kind`, `vocabulary_size`, `sample_rate_hz`, `labels`); shapes, classes and, for
    class and value targets, the target's kind are found in the arrays. Targets of None with token windows
    [N, T + 1] mean the next token.

    Raises: DataError if it is missing, fails or returns something else.
    """
    what = f"data.function {spec.function!r}"
    inputs, targets, table = _unpacked(_called(spec, what), what)
    inputs = _inputs(inputs, table, what)
    if targets is None:
        if table.get("input_kind") not in ("text", "tokens") or inputs.shape[1] < 2:
            raise DataError(
                f"{what} returned no targets (None), which is for windows of tokens; return {_RETURNS}"
            )
        signature = _signature(
            table, what, input_shape=(inputs.shape[1] - 1,), target_kind="tokens", target_shape=(
                inputs.shape[1] - 1,
            )
        )  # fmt: skip
        finish: Finish = _next_tokens
    else:
        targets, found = _targets(np.asarray(targets), table, len(inputs), what)
        signature = _signature(table, what, input_shape=inputs.shape[1:], **found)
        finish = as_they_are
    return in_memory.dataset(inputs, targets, signature, spec, what=what, finish=finish, is_raw=is_raw)


def _called(spec: ModuleData, what: str) -> Any:
    function = import_function(spec.function, what, DataError)
    try:
        return function(**spec.arguments)
    except (Exception, SystemExit) as error:
        raise DataError(f"{what}, called with {sorted(spec.arguments)}, raised {told(error)}") from error


def _unpacked(returned: Any, what: str) -> tuple[Array, Any, dict[str, Any]]:
    if not isinstance(returned, tuple) or len(returned) != 3 or not isinstance(returned[2], dict):
        found = type(returned).__name__
        if isinstance(returned, tuple):
            found = "(" + ", ".join(type(value).__name__ for value in returned) + ")"
        raise DataError(f"{what} returned {found}; it must return {_RETURNS}")
    inputs = np.asarray(returned[0])
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2 or len(inputs) == 0:
        raise DataError(
            f"{what} returned inputs of shape {inputs.shape} and dtype {inputs.dtype}; they must be numbers "
            "of shape [samples, ...]"
        )
    return inputs, returned[1], returned[2]


def _inputs(inputs: Array, table: dict[str, Any], what: str) -> Array:
    """In the signature's dtype. Raises: DataError for values that no model can take."""
    kind = table.get("input_kind")
    dimensions = {"image": 4, "audio": 2, "text": 2, "tokens": 2}.get(str(kind), inputs.ndim)
    if inputs.ndim != dimensions:
        raise DataError(
            f"{what} returned {kind} inputs of shape {inputs.shape}; they must have {dimensions} dimensions, "
            "the first one the samples"
        )
    if kind in ("text", "tokens"):
        return _tokens(inputs, table, "inputs", what)
    return _finite(inputs, "inputs", what)


def _targets(
    targets: Array, table: dict[str, Any], num_samples: int, what: str
) -> tuple[Array, dict[str, Any]]:
    """In the signature's dtype, and what they say of the signature."""
    if targets.ndim == 0 or len(targets) != num_samples:
        raise DataError(
            f"{what} returned {num_samples} inputs and targets of shape {targets.shape}; "
            "there must be one target for each input"
        )
    kind = table.get("target_kind") or ("value" if targets.dtype.kind == "f" else "class")
    if kind == "tokens":
        targets = _tokens(targets, table, "targets", what, ignored=IGNORED_TARGET)
        return targets, {"target_kind": kind, "target_shape": targets.shape[1:]}
    if kind == "value":
        values = _finite(targets, "targets", what).reshape(num_samples, -1)
        return values, {"target_kind": kind, "target_shape": values.shape[1:]}
    if targets.ndim != 1 or targets.dtype.kind == "c":
        raise DataError(f"{what} returned class targets of shape {targets.shape}; they must be [samples]")
    return _classes(targets, table, what)


def _classes(targets: Array, table: dict[str, Any], what: str) -> tuple[Array, dict[str, Any]]:
    from eagleray.data.targets import classes_of  # pyarrow takes 0.3 s to import

    labels = tuple(str(label) for label in table.get("labels", ()))
    if labels and targets.dtype.kind in "iu":
        if targets.min() < 0 or targets.max() >= len(labels):
            raise DataError(
                f"{what} returned class targets from {targets.min()} to {targets.max()} and {len(labels)} "
                "labels; targets must be indices into the labels"
            )
        return targets.astype(np.int64), {"target_kind": "class", "num_classes": len(labels)}
    classes, column = classes_of(targets, "targets", what)
    return column, {"target_kind": "class", "num_classes": len(classes.labels), "labels": classes.labels}


def _tokens(tokens: Array, table: dict[str, Any], which: str, what: str, ignored: int = 0) -> Array:
    limit = table.get("vocabulary_size")
    is_whole = tokens.dtype.kind in "iu"
    if not is_whole or not isinstance(limit, int) or ((tokens < 0) & (tokens != ignored)).any() or (
        tokens >= limit
    ).any():  # fmt: skip
        found = f"{tokens.min()} to {tokens.max()}" if tokens.size else "nothing"
        raise DataError(
            f"{what} returned {which} of dtype {tokens.dtype} from {found}; tokens must be whole numbers "
            f"below the table's vocabulary_size ({limit})"
        )
    return tokens.astype(np.int64)


def _finite(values: Array, which: str, what: str) -> Array:
    """The values as float32. Raises: DataError if one is NaN or infinite."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"{what} returned {which} of dtype {values.dtype}; they must be numbers")
    is_bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if is_bad.any():
        raise DataError(
            f"{what} returned {which} with NaN or infinite values in {int(is_bad.sum())} samples "
            f"(first: sample {int(np.flatnonzero(is_bad)[0])}); fill or drop them"
        )
    return values.astype(np.float32)


def _signature(table: dict[str, Any], what: str, **found: Any) -> Signature:
    """The user's table with what the arrays say laid over it."""
    try:
        return validate(Signature, {**table, **found}, name=f"{what}: its signature table")
    except SpecError as error:
        raise DataError("; ".join(str(error).splitlines())) from error


def _next_tokens(windows: Array, targets: Array | None) -> Arrays:
    return Arrays(windows[:, :-1].copy(), windows[:, 1:].copy())
