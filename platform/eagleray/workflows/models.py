"""Model versions as plain values, in the words of the admin API: list, show, promote."""

from __future__ import annotations

from typing import Any

from eagleray.workflows.publish import models


def list_models() -> list[dict[str, Any]]:
    """Every model: {"name", "versions": [int], "aliases": {alias: int}, "newest": that version}."""
    store = models()
    return [
        {
            "name": name,
            "versions": [version.version for version in versions],
            "aliases": {alias: version.version for version in versions for alias in version.aliases},
            "newest": versions[-1].to_json(),
        }
        for name in store.names()
        if (versions := store.versions(name))
    ]


def show(ref: str) -> dict[str, Any]:
    """A model, and the card of the version that `ref` means.

    {"name", "version", "versions": [{"version", "ref", "digest", "url", "aliases", "metrics", "lineage",
    "created_at"}], "card": the package's model.json}.

    Raises:
        InputError, ModelNotFound: as `ModelStore.resolve`.
        PackageError: the version's package is missing or damaged.
        ServiceError: MLflow does not answer.
    """
    from eagleray.packaging import open_package

    store = models()
    meant = store.resolve(ref)
    package = open_package(meant.url, allow_code=True, digest=meant.digest)  # to read its card, not to run it
    return {
        "name": meant.name,
        "version": meant.version,
        "versions": [version.to_json() for version in store.versions(meant.name)],
        "card": package.card.model_dump(mode="json"),
    }


def promote(name: str, version: int, alias: str) -> dict[str, Any]:
    """Point `alias` to a version: {"name", "version", "alias"}.

    Raises:
        InputError, ModelNotFound: the alias cannot be one, or there is no such version.
        ServiceError: MLflow does not answer.
    """
    models().promote(name, version, alias)
    return {"name": name, "version": version, "alias": alias}
