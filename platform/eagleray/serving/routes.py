"""Which model version answers which name: a value that the controller writes and every ingress reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from eagleray.errors import ModelNotFound

if TYPE_CHECKING:
    from eagleray.specs.card import ModelCard

TargetState = Literal["ready", "starting", "failed", "stopping"]

_NAME = "[a-z0-9][a-z0-9._-]{0,62}"
_REFERENCE = re.compile(rf"({_NAME})(?:@({_NAME})|/versions/([1-9][0-9]{{0,8}}))?")
_VERSION = re.compile("[1-9][0-9]{0,8}")


class UnknownModel(ModelNotFound):
    """No model, version or alias of that name is deployed."""


@dataclass(frozen=True)
class Target:
    """One deployed model version."""

    name: str
    version: int
    app: str
    """Of its Serve application."""
    card: ModelCard
    digest: str
    """Of its package's manifest."""
    state: TargetState
    max_queued: int
    message: str = ""
    """Why it failed, where it did."""
    cache_bytes: int = 0
    """Of its answers, that each gateway keeps; 0: none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "app": self.app,
            "card": self.card.model_dump(mode="json"),
            "digest": self.digest,
            "state": self.state,
            "max_queued": self.max_queued,
            "message": self.message,
            "cache_bytes": self.cache_bytes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Target:
        """What `to_json` gave."""
        from eagleray.specs.card import ModelCard

        return cls(**{**values, "card": ModelCard.model_validate(values["card"])})


@dataclass(frozen=True)
class ModelRoute:
    """The deployed versions of one model."""

    default: int
    """The version that answers where none is named."""
    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, Target] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "default": self.default,
            "aliases": dict(self.aliases),
            "versions": {str(version): target.to_json() for version, target in self.versions.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelRoute:
        """What `to_json` gave."""
        return cls(
            default=int(values["default"]),
            aliases={str(alias): int(version) for alias, version in values["aliases"].items()},
            versions={int(v): Target.from_json(target) for v, target in values["versions"].items()},
        )


@dataclass(frozen=True)
class Routes:
    """Every deployed model; of two, the one of the higher generation is newer."""

    generation: int = 0
    models: Mapping[str, ModelRoute] = field(default_factory=dict)

    def resolve(self, model: str, version: str | None = None) -> Target:
        """The version that answers for `model`: "digits", "digits@candidate" or "digits/versions/3".

        `version` is a number as text, as a path carries it; it goes with a bare name only.

        Raises:
            UnknownModel: nothing deployed has that name, alias or version; the message lists what there is.
        """
        matched = _REFERENCE.fullmatch(model)
        if matched is None:
            raise UnknownModel(
                f"model {_shown(model)}: not a name; expected NAME, NAME@ALIAS or NAME/versions/NUMBER"
            )
        name, alias, inner_version = matched.groups()
        if version is not None and (alias or inner_version):
            raise UnknownModel(f"model {_shown(model)}: names a version twice (also {_shown(version)})")
        route = self.models.get(name)
        if route is None:
            raise UnknownModel(f"no model {name!r} is deployed; deployed: {_listed(sorted(self.models))}")
        if alias is not None:
            return self._of_alias(name, route, alias)
        wanted = version if version is not None else inner_version
        if wanted is None:
            return self._of_version(name, route, str(route.default))
        return self._of_version(name, route, wanted)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "generation": self.generation,
            "models": {name: route.to_json() for name, route in self.models.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Routes:
        """What `to_json` gave."""
        return cls(
            generation=int(values["generation"]),
            models={str(name): ModelRoute.from_json(route) for name, route in values["models"].items()},
        )

    def _of_alias(self, name: str, route: ModelRoute, alias: str) -> Target:
        version = route.aliases.get(alias)
        if version is None:
            raise UnknownModel(
                f"model {name!r} has no alias {alias!r}; it has: {_listed(sorted(route.aliases))}"
            )
        return self._of_version(name, route, str(version))

    def _of_version(self, name: str, route: ModelRoute, version: str) -> Target:
        target = route.versions.get(int(version)) if _VERSION.fullmatch(version) else None
        if target is None:
            deployed = _listed([str(number) for number in sorted(route.versions)])
            raise UnknownModel(
                f"model {name!r} has no deployed version {_shown(version)}; deployed: {deployed}"
            )
        return target


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return (f"{shown}, … ({len(names)} in all)" if len(names) > 20 else shown) or "none"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
