"""`ModelStore`: versions of models by name, whoever keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from eagleray.errors import ModelNotFound
from eagleray.packaging.storage import Folder
from eagleray.specs import Lineage, ModelCard
from eagleray.specs.model_ref import similar

if TYPE_CHECKING:
    from torch import Tensor


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


def no_such_model(name: str, names: Sequence[str]) -> ModelNotFound:
    """The error for a name that the store does not have."""
    there = f"there are: {', '.join(names[:20])}" if names else "none is published yet"
    near = similar(name, names)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return ModelNotFound(f"no model {name!r}{meant}; {there}")
