"""`KeyTerms`: what an API key may use, as the command line asks for it and every gateway obeys it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from eagleray.errors import InputError

Priority = Literal["interactive", "batch", "shadow"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""The first waits for none of the others, the second for the first only."""

MAX_WEIGHT = 100
_LARGEST = 1e12
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\*?")


@dataclass(frozen=True)
class KeyTerms:
    """What a key may use; None is no limit. A value outside its range raises InputError.

    A limit is for the key as a whole, however many gateways its requests come through.
    """

    models: tuple[str, ...] = ()
    """Names, or beginnings of names that end in `*`; none: all models."""
    requests_per_s: float | None = None
    burst: float | None = None
    """Requests at once after a pause; None: a quarter of a second of the rate, one at least."""
    tokens_per_s: float | None = None
    """Of prompts and answers together, where a model generates text."""
    bytes_per_s: float | None = None
    """Of bodies, in and out."""
    concurrency: int | None = None
    """Requests that are under way."""
    weight: int = 1
    """Its share where keys wait for one another."""
    priority: Priority = "interactive"
    expires_at: float | None = None
    """Seconds since the epoch."""

    def __post_init__(self) -> None:
        for model in self.models:
            if not isinstance(model, str) or not _MODEL.fullmatch(model):
                raise InputError(
                    f"models: {str(model)[:80]!r} is none; give names of models, or beginnings such as gpt-*"
                )
        for name in ("requests_per_s", "burst", "tokens_per_s", "bytes_per_s", "expires_at"):
            _check_number(name, getattr(self, name))
        _check_whole("concurrency", self.concurrency, 1_000_000)
        _check_whole("weight", self.weight, MAX_WEIGHT)
        if self.weight is None:
            raise InputError(f"weight: expected a whole number from 1 to {MAX_WEIGHT}")
        if self.priority not in PRIORITIES:
            raise InputError(
                f"priority {str(self.priority)[:60]!r} is not known; choose {', '.join(PRIORITIES)}"
            )
        if self.burst is not None and (self.requests_per_s is None or self.burst < 1):
            raise InputError("burst: expected 1 or more, beside requests_per_s")

    @property
    def has_limits(self) -> bool:
        """Whether there is any limit that gateways have to share."""
        limits = (self.requests_per_s, self.tokens_per_s, self.bytes_per_s, self.concurrency)
        return any(limit is not None for limit in limits)

    def allows(self, model: str) -> bool:
        """Whether a key with these terms may use the model of this name."""
        return not self.models or any(
            model.startswith(wanted[:-1]) if wanted.endswith("*") else model == wanted
            for wanted in self.models
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON: those that differ from a key without terms."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in values.items() if value != getattr(_NONE, name, None)}
        return {**given, **({"models": list(self.models)} if self.models else {})}

    @classmethod
    def from_json(cls, values: Any, what: str = "terms") -> KeyTerms:
        """What `to_json` gave, or somebody wrote. Raises: InputError."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping):
            raise InputError(f"{what}: expected an object with some of: {', '.join(known)}")
        if unknown := [name for name in values if name not in known]:
            raise InputError(f"{what}: unknown key {str(unknown[0])[:60]!r}; known: {', '.join(known)}")
        models = values.get("models", ())
        if not isinstance(models, list | tuple):
            raise InputError(f"{what}: models: expected a list of names")
        return cls(**{**values, "models": tuple(models)})


def _check_number(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:  # nor NaN
        raise InputError(f"{name}: expected a number above 0, not {str(value)[:40]}")


def _check_whole(name: str, value: object, most: int) -> None:
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise InputError(f"{name}: expected a whole number from 1 to {most}, not {str(value)[:40]}")


_NONE = KeyTerms()
