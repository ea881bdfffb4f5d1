"""`ControlPlane`: the admin API's verbs, carried out on the controller's record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eagleray import __version__
from eagleray.errors import InputError
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving import services
from eagleray.serving.catalog import aliases_of
from eagleray.serving.control_settings import INGRESS_APP
from eagleray.serving.gateway.orders import GatewayOrders
from eagleray.serving.memory import ADMIN_KEY_NAME
from eagleray.serving.services import ServedVersion
from eagleray.specs import ServiceSpec, validate

if TYPE_CHECKING:
    from eagleray.packaging.store import ModelVersion
    from eagleray.serving.controller import Controller


class ControlPlane:
    """An AdminBackend: each answer is plain values."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def status(self) -> dict[str, Any]:
        """The whole in short."""
        controller = self._controller
        record = controller.record
        return {
            "version": __version__,
            "cluster": controller.settings.cluster,
            "url": controller.settings.url,
            "uptime_s": time.time() - controller.started_s,
            "trouble": controller.trouble,
            "nodes": await asyncio.to_thread(_num_nodes),
            "models": {name: service.default for name, service in sorted(record.services.items())},
            "keys": len(record.keys.keys),
            "storage": controller.settings.storage_url,
            "tracking": controller.settings.tracking_uri,
        }

    async def models(self) -> list[dict[str, Any]]:
        """Every model of the registry."""
        found = []
        for name in await self._controller.catalog.names():
            versions = await self._controller.catalog.versions(name)
            found.append(
                {
                    "name": name,
                    "versions": [version.version for version in versions],
                    "aliases": aliases_of(versions),
                    "deployed": self._deployed(name),
                    "created_at": max((version.created_at for version in versions), default=0.0),
                }
            )
        return found

    async def model(self, name: str) -> dict[str, Any]:
        """One model with all its versions."""
        versions = await self._controller.catalog.versions(name)
        return {
            "name": name,
            "versions": [_version_to_json(version) for version in versions],
            "deployed": self._deployed(name),
        }

    async def promote(self, name: str, version: int, alias: str) -> dict[str, Any]:
        """Point an alias of the registry, and of the ingress, to a version."""
        await self._controller.catalog.promote(name, version, alias)
        aliases = await self._controller.catalog.aliases(name)
        record = self._controller.record
        if name in record.services:
            service = replace(record.services[name], aliases=aliases)
            self._controller.commit(record.with_service(name, service))
        return {"name": name, "version": version, "alias": alias}

    async def runs(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest runs."""
        return [run.to_json() for run in await self._controller.catalog.runs(name, limit)]

    async def services(self) -> list[dict[str, Any]]:
        """Every deployed version."""
        replicas = await self._controller.num_replicas()
        decisions = await self._controller.decisions()
        record = self._controller.record
        return [
            {
                "name": name,
                "version": number,
                "state": served.target().state,
                "is_default": service.default == number,
                "replicas": replicas.get(served.app, 0),
                "message": served.failure,
                "scaling": decisions.get(served.app),
                "digest": served.digest,
                "aliases": sorted(alias for alias, version in service.aliases.items() if version == number),
                "deployed_at": served.deployed_at,
                "spec": served.spec.model_dump(mode="json"),
            }
            for name, service in sorted(record.services.items())
            for number, served in sorted(service.versions.items())
        ]

    async def deploy(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Write down what is to be served; the loop does the rest.

        Raises:
            SpecError, ModelNotFound, PackageError: it cannot be right.
            CapacityError: the cluster's node types could never hold a replica.
        """
        wanted = validate(ServiceSpec, {"kind": "service", **spec}, name="service")
        found, card = await self._controller.catalog.find(wanted.ref, allow_code=wanted.allow_code)
        aliases = await self._controller.catalog.aliases(wanted.name)
        await asyncio.to_thread(self._controller.require_capacity, wanted)
        served = ServedVersion(wanted, found.version, found.url, found.digest, card, deployed_at=time.time())
        record = services.deploy(self._controller.record, served)
        service = replace(record.services[wanted.name], aliases=aliases)
        self._controller.commit(record.with_service(wanted.name, service))
        state = service.versions[found.version].target().state
        return {"name": wanted.name, "version": found.version, "state": state, "app": served.app}

    async def undeploy(self, name: str, version: int | None) -> dict[str, Any]:
        """Let nothing lead to one version, or all of a model, and end them. Raises: ModelNotFound."""
        record, going = services.undeploy(self._controller.record, name, version, time.time())
        self._controller.commit(record)
        return {"name": name, "versions": going}

    async def claims(self) -> dict[str, Any]:
        """Who holds which resources of the cluster, by the ledger."""
        return await asyncio.to_thread(ledger_report)

    async def gateways(self) -> dict[str, Any]:
        """Those of the newest order, and whether all of them run."""
        controller = self._controller
        replicas = await controller.num_replicas()
        return {
            "number": controller.in_effect().gateway.number,
            "running": replicas.get(INGRESS_APP, 0),
            "is_settled": controller.are_gateways_as_asked,
            "restarts": controller.record.gateways.restarts,
            "message": controller.trouble,
        }

    async def restart_gateways(self) -> dict[str, Any]:
        """Let Serve replace all gateways: new ones listen before old ones end."""
        return await self._order(self._controller.record.gateways.restart())

    async def scale_gateways(self, number: int) -> dict[str, Any]:
        """Have so many gateways until the spec says another number. Raises: InputError."""
        controller = self._controller
        return await self._order(controller.record.gateways.scale(number, controller.settings.gateway))

    async def keys(self) -> list[dict[str, Any]]:
        """Every key, without its text."""
        return [key.to_public() for key in self._controller.record.keys.keys.values()]

    async def create_key(
        self, name: str, scopes: Sequence[str], terms: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A new key; its text is in this answer and nowhere else. Raises: InputError."""
        if name == ADMIN_KEY_NAME:
            raise InputError(f"key name {name!r} is that of `up`'s own, which it replaces; choose another")
        ring, key, text = self._controller.record.keys.create(name, scopes, KeyTerms.from_json(terms or {}))
        self._controller.commit(replace(self._controller.record, keys=ring))
        return {**key.to_public(), "key": text}

    async def rotate_key(self, key_id: str, overlap_s: float) -> dict[str, Any]:
        """A new text for a key; the old one is good for `overlap_s` more. Raises: InputError."""
        keys = self._controller.record.keys
        if key_id in keys.keys and keys.keys[key_id].name == ADMIN_KEY_NAME:
            raise InputError(f"key {ADMIN_KEY_NAME!r} is `up`'s own: revoke it, and the next `up` makes one")
        ring, key, text = keys.rotate(key_id, overlap_s)
        self._controller.commit(replace(self._controller.record, keys=ring))
        return {**key.to_public(), "key": text}

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        """From now on the key opens nothing. Raises: InputError."""
        ring = self._controller.record.keys.revoke(key_id)
        self._controller.commit(replace(self._controller.record, keys=ring))
        return {"id": key_id}

    async def _order(self, orders: GatewayOrders) -> dict[str, Any]:
        self._controller.commit(replace(self._controller.record, gateways=orders))
        return await self.gateways()

    def _deployed(self, name: str) -> list[int]:
        service = self._controller.record.services.get(name)
        return sorted(service.versions) if service else []


def ledger_report() -> dict[str, Any]:
    """As `AdminBackend.claims`; Ray is connected. Blocks for 10 s at most."""
    from ray.exceptions import RayError

    from eagleray.cluster.ledger_client import LedgerClient

    try:
        client = LedgerClient.find()
        if client is None:
            return {"trouble": "this cluster has no ledger: start it anew, or attach to it anew"}
        found = client.report()
    except RayError as error:
        return {"trouble": f"the ledger cannot be asked: {type(error).__name__}"}
    if found is None:
        return {"trouble": "the ledger does not answer; it is started again by itself"}
    return found


def _version_to_json(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "digest": version.digest,
        "url": version.url,
        "aliases": list(version.aliases),
        "metrics": dict(version.metrics),
        "lineage": version.lineage.model_dump(mode="json"),
        "created_at": version.created_at,
    }


def _num_nodes() -> int:
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"])
