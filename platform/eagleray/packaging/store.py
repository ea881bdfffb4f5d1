"""`ModelStore`: versions of models by name, whoever keeps them; and what a reference to one may look like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from eagleray.errors import InputError, ModelNotFound
from eagleray.packaging.storage import Folder
from eagleray.specs import Lineage, ModelCard

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9]\d{0,8}")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model in a store."""

    name: str
    version: int
    """1, 2, …"""
    url: str
    """Its package."""
    digest: str
    """The package's identity: SHA-256 (hex) of its MANIFEST.json."""
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    lineage: Lineage
    created_at: float
    """Seconds since the epoch."""

    @property
    def ref(self) -> str:
        """The reference that always means this one: "digits/versions/3"."""
        return f"{self.name}/versions/{self.version}"

    def to_json(self) -> dict[str, Any]:
        """The fields and `ref`, as plain values."""
        return {
            **{item.name: getattr(self, item.name) for item in fields(self)},
            "ref": self.ref,
            "aliases": list(self.aliases),
            "metrics": dict(self.metrics),
            "lineage": self.lineage.model_dump(mode="json"),
        }


class ModelStore(Protocol):
    """Versions of models, numbered 1, 2, … under each name; an alias points to one version of its name.

    Every method raises ServiceError where the store's server or storage does not answer.
    """

    def publish(
        self,
        card: ModelCard,
        weights: Mapping[str, Tensor],
        code: Folder | None = None,
        *,
        aliases: Sequence[str] = (),
    ) -> ModelVersion:
        """Make the next version of `card.name`; it is visible with its whole package or not at all.

        Args:
            card: What the package says of the model.
            weights: The state dict; any device.
            code: Folder whose .py files the package carries.
            aliases: Point to the new version afterwards.

        Raises:
            InputError: a name or alias that cannot be one.
            PackageError: the package cannot be written.
        """
        ...

    def versions(self, name: str) -> list[ModelVersion]:
        """The versions of a model, oldest first. Raises: ModelNotFound."""
        ...

    def names(self) -> list[str]:
        """The names of the models that have a version, sorted."""
        ...

    def resolve(self, ref: str) -> ModelVersion:
        """The version that a reference means: "digits" (the newest), "digits@alias", "digits/versions/3".

        Raises:
            InputError: no reference looks like that.
            ModelNotFound: it names what is not there; the message has what is.
        """
        ...

    def promote(self, name: str, version: int, alias: str) -> None:
        """Point `alias` to a version; it points to no other any more. Raises: InputError, ModelNotFound."""
        ...


@dataclass(frozen=True)
class Ref:
    """A reference to a version, taken apart: a version, an alias, or neither (the newest)."""

    name: str
    version: int | None = None
    alias: str | None = field(default=None)

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The parts of "digits", "digits@alias" or "digits/versions/3". Raises: InputError."""
        name, at, alias = text.partition("@")
        name, slash, version = name.partition("/versions/")
        if (at and slash) or (slash and not _VERSION.fullmatch(version)):
            raise InputError(f"model {text[:80]!r}: write NAME, NAME@ALIAS or NAME/versions/NUMBER")
        check_name(name)
        if at:
            check_alias(alias)
        return cls(name, int(version) if slash else None, alias if at else None)


def check_name(name: str) -> str:
    """`name` itself. Raises: InputError where no model can be called so."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"model name {_shown(name)} cannot be used: take 1 to 63 lower-case letters, digits, dots, "
            "dashes and underscores, the first one a letter or digit"
        )
    return name


def check_alias(alias: str) -> str:
    """`alias` itself. Raises: InputError: it is none, or would be taken for a version."""
    if not NAME.fullmatch(alias) or alias == "latest" or re.fullmatch(r"v?\d+", alias):
        raise InputError(
            f"alias {_shown(alias)} cannot be used: take 1 to 63 lower-case letters, digits, dots, "
            'dashes and underscores, but no number and not "latest" (a name without an alias means that)'
        )
    return alias


def pick(ref: Ref, versions: Sequence[ModelVersion]) -> ModelVersion:
    """The version of `versions` (all of one name, one at least) that `ref` means. Raises: ModelNotFound."""
    if ref.version is None and ref.alias is None:
        return max(versions, key=lambda version: version.version)
    for version in versions:
        if version.version == ref.version or (ref.alias is not None and ref.alias in version.aliases):
            return version
    numbers = ", ".join(str(version.version) for version in versions[-10:])
    aliases = ", ".join(sorted(alias for version in versions for alias in version.aliases)) or "none"
    wanted = f"alias {ref.alias!r}" if ref.alias is not None else f"version {ref.version}"
    raise ModelNotFound(f"model {ref.name!r} has no {wanted}; versions: {numbers}; aliases: {aliases}")


def no_such_model(name: str, names: Sequence[str]) -> ModelNotFound:
    """The error for a name that the store does not have."""
    there = f"there are: {', '.join(names[:20])}" if names else "none is published yet"
    return ModelNotFound(f"no model {name!r}; {there}")


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}… ({len(text)} characters)"
