"""`AdminBackend`: what the ingress's admin API asks of the control plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class AdminBackend(Protocol):
    """Sole writer of routes, model applications and keys; every answer is plain values, for JSON.

    Any method raises an EaglerayError, which the ingress answers with a status: ModelNotFound 404, InputError
    400, AuthError 401, CapacityError 409, ServiceError 503, any other 500.
    """

    async def status(self) -> dict[str, Any]:
        """{"version", "cluster", "nodes", "models", …}: the whole in short."""
        ...

    async def models(self) -> list[dict[str, Any]]:
        """Every model of the registry: {"name", "versions": [int], "aliases": {alias: int}, …}."""
        ...

    async def model(self, name: str) -> dict[str, Any]:
        """{"name", "versions": [{"version", "digest", "aliases", "metrics", "lineage", "created_at"}]}."""
        ...

    async def promote(self, name: str, version: int, alias: str) -> dict[str, Any]:
        """Point `alias` of the registry's model at `version`; {"name", "version", "alias"}."""
        ...

    async def runs(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest runs, those of an id or a spec's name where given: {"id", "name", "status", …}."""
        ...

    async def services(self) -> list[dict[str, Any]]:
        """Every deployed version: {"name", "version", "state", "replicas", "spec", "message", …}."""
        ...

    async def deploy(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Start what the ServiceSpec says; {"name", "version", "state"} at once, before it is ready."""
        ...

    async def undeploy(self, name: str, version: int | None) -> dict[str, Any]:
        """End one version, or all of a model; {"name", "versions": [int]}."""
        ...

    async def claims(self) -> dict[str, Any]:
        """The ledger's report (`cluster/report.py`), or {"trouble": why there is none}."""
        ...

    async def gateways(self) -> dict[str, Any]:
        """{"number", "running", "is_settled", "restarts", "message"} of the processes that take requests."""
        ...

    async def restart_gateways(self) -> dict[str, Any]:
        """As `gateways`: from now on new ones take their places, and each old one ends when it is done."""
        ...

    async def scale_gateways(self, number: int) -> dict[str, Any]:
        """As `gateways`: from now on there are so many. Raises: InputError."""
        ...

    async def keys(self) -> list[dict[str, Any]]:
        """Every key without its secret: {"id", "name", "scopes", "created_at", "terms", "old_text_until"}."""
        ...

    async def create_key(
        self, name: str, scopes: Sequence[str], terms: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As one of `keys`, and "key", its text: it is shown this once and kept nowhere.

        `terms` is a KeyTerms as JSON.
        """
        ...

    async def rotate_key(self, key_id: str, overlap_s: float) -> dict[str, Any]:
        """As `create_key`, for a key that is there: its new text; the old one is good for `overlap_s`."""
        ...

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        """{"id"}; from now on the key opens nothing."""
        ...
