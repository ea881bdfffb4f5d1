"""The control plane through the ingress's admin API: what is published, what is deployed, who may what."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.client import results
from eagleray.client.calls import Call, segment
from eagleray.client.claims import Claims
from eagleray.client.claims import claims as claims_of
from eagleray.client.results import ApiKey, Gateways, RegisteredModel, RegisteredVersion, Service
from eagleray.errors import InputError, ServiceError
from eagleray.protocol.infer import dumps
from eagleray.protocol.key_terms import KeyTerms

if TYPE_CHECKING:
    from eagleray.specs import Spec

POLL_S = 0.2
OVERLAP_S = 86_400.0
"""For so long the old text of a rotated key is good: a day to hand the new one out."""


class Admin:
    """Needs a key of scope `admin`; `eagleray up` keeps the first one in the cluster's folder, admin.key."""

    def __init__(self, run: Callable[[Call[Any]], Any]) -> None:
        self._run = run

    def status(self) -> dict[str, Any]:
        """The whole in short: version, cluster, nodes, models and so on."""
        return self._run(status())

    def models(self) -> list[RegisteredModel]:
        """Every model of the registry, deployed or not."""
        return self._run(models())

    def versions(self, name: str) -> list[RegisteredVersion]:
        """The versions of one model, with metrics and lineage. Raises: ModelNotFound."""
        return self._run(versions(name))

    def promote(self, name: str, version: int, alias: str) -> None:
        """Point an alias at a version, in the registry and at the ingress. Raises: ModelNotFound."""
        self._run(promote(name, version, alias))

    def services(self, name: str | None = None) -> list[Service]:
        """Every deployed version; of one model, where it is named. Raises: ModelNotFound."""
        return self._run(services(name))

    def deploy(
        self,
        spec: str | Path | Spec | Mapping[str, Any],
        *,
        wait_s: float = 0.0,
        overrides: Sequence[str] = (),
    ) -> Service:
        """Start a model version behind the ingress; asked again, change it.

        Args:
            spec: The path of a service spec's file, the spec, or its fields: {"name": "digits"}.
            wait_s: Return when it is ready, and wait so long for that; 0 returns at once.
            overrides: "a.b=c" each, laid over the file.

        Raises:
            SpecError: the spec does not validate.
            ModelNotFound: the registry has no such model or version.
            CapacityError: no node of the cluster could ever hold a replica.
            ServiceError: it failed to start, or was not ready in time.
        """
        begun = self._run(deploy(spec, overrides))
        deadline_s = time.monotonic() + wait_s
        while (found := pick(self.services(begun.name), begun)).state != "ready":
            if is_time_up(found, time.monotonic() >= deadline_s, wait_s):
                break
            time.sleep(POLL_S)
        return found

    def undeploy(self, name: str, version: int | None = None) -> list[int]:
        """End one version, or all of a model; what is under way is answered. Raises: ModelNotFound."""
        return self._run(undeploy(name, version))

    def claims(self) -> Claims:
        """Who holds which CPUs and GPUs of the cluster under which claim, and what waits for what."""
        return self._run(claims())

    def gateways(self) -> Gateways:
        """The processes that take requests."""
        return self._run(gateways())

    def restart_gateways(self) -> Gateways:
        """Let new gateways take the place of all that run; no request fails. It returns at once."""
        return self._run(restart_gateways())

    def scale_gateways(self, number: int) -> Gateways:
        """Have so many gateways; it returns at once. Raises: InputError."""
        return self._run(scale_gateways(number))

    def keys(self) -> list[ApiKey]:
        """Every API key, without its text."""
        return self._run(keys())

    def create_key(
        self, name: str, scopes: Sequence[str] = ("infer",), terms: KeyTerms | None = None
    ) -> ApiKey:
        """A new key. Its text, `key`, is in this answer and nowhere else. Raises: InputError."""
        return self._run(create_key(name, scopes, terms))

    def rotate_key(self, key_id: str, *, overlap_s: float = OVERLAP_S) -> ApiKey:
        """A new text, `key`, for a key; its old one is good for `overlap_s` more. Raises: InputError."""
        return self._run(rotate_key(key_id, overlap_s))

    def revoke_key(self, key_id: str) -> None:
        """Let a key open nothing any more. Raises: InputError where there is none of that id."""
        self._run(revoke_key(key_id))


def status() -> Call[dict[str, Any]]:
    """As `Admin.status`."""
    return Call("GET", "/admin/status", dict)


def models() -> Call[list[RegisteredModel]]:
    """As `Admin.models`."""
    return Call("GET", "/admin/models", lambda values: list(map(results.registered_model, values["models"])))


def versions(name: str) -> Call[list[RegisteredVersion]]:
    """As `Admin.versions`."""
    return Call(
        "GET",
        f"/admin/models/{segment(name)}",
        lambda values: [results.registered_version(name, entry) for entry in values["versions"]],
    )


def promote(name: str, version: int, alias: str) -> Call[None]:
    """As `Admin.promote`."""
    path = f"/admin/models/{segment(name)}/promote"
    return Call("POST", path, _nothing, dumps({"version": version, "alias": alias}), is_idempotent=False)


def services(name: str | None) -> Call[list[Service]]:
    """As `Admin.services`."""
    path = "/admin/services" + ("" if name is None else f"/{segment(name)}")
    return Call("GET", path, lambda values: list(map(results.service, values["services"])))


def deploy(spec: str | Path | Spec | Mapping[str, Any], overrides: Sequence[str]) -> Call[Service]:
    """As `Admin.deploy`, without waiting."""
    content = dumps(_fields(spec, overrides))
    return Call("POST", "/admin/deploy", results.service, content, is_idempotent=False)


def undeploy(name: str, version: int | None) -> Call[list[int]]:
    """As `Admin.undeploy`."""
    asked = {"name": name} | ({} if version is None else {"version": version})
    return Call(
        "POST", "/admin/undeploy", lambda values: values["versions"], dumps(asked), is_idempotent=False
    )


def claims() -> Call[Claims]:
    """As `Admin.claims`."""
    return Call("GET", "/admin/claims", claims_of)


def gateways() -> Call[Gateways]:
    """As `Admin.gateways`."""
    return Call("GET", "/admin/gateways", results.gateways)


def restart_gateways() -> Call[Gateways]:
    """As `Admin.restart_gateways`."""
    return Call("POST", "/admin/gateways/restart", results.gateways, is_idempotent=False)


def scale_gateways(number: int) -> Call[Gateways]:
    """As `Admin.scale_gateways`."""
    return Call("POST", "/admin/gateways", results.gateways, dumps({"number": number}))


def keys() -> Call[list[ApiKey]]:
    """As `Admin.keys`."""
    return Call("GET", "/admin/keys", lambda values: list(map(results.api_key, values["keys"])))


def create_key(name: str, scopes: Sequence[str], terms: KeyTerms | None) -> Call[ApiKey]:
    """As `Admin.create_key`."""
    asked = {"name": name, "scopes": list(scopes)} | ({"terms": terms.to_json()} if terms else {})
    return Call("POST", "/admin/keys", results.api_key, dumps(asked), is_idempotent=False)


def rotate_key(key_id: str, overlap_s: float) -> Call[ApiKey]:
    """As `Admin.rotate_key`."""
    path = f"/admin/keys/{segment(key_id)}/rotate"
    return Call("POST", path, results.api_key, dumps({"overlap_s": overlap_s}), is_idempotent=False)


def revoke_key(key_id: str) -> Call[None]:
    """As `Admin.revoke_key`."""
    return Call("DELETE", f"/admin/keys/{segment(key_id)}", _nothing, is_idempotent=False)


def pick(found: Sequence[Service], wanted: Service) -> Service:
    """The version that was deployed, among those of its model. Raises: ServiceError where it is gone."""
    for service in found:
        if service.version == wanted.version:
            return service
    raise ServiceError(f"model {wanted.name!r} version {wanted.version} was undeployed meanwhile")


def is_time_up(service: Service, is_late: bool, wait_s: float) -> bool:
    """Whether to stop waiting. Raises: ServiceError where it failed, or where the wait was in vain."""
    what = f"model {service.name!r} version {service.version}"
    if service.state == "failed" and wait_s > 0:
        raise ServiceError(f"{what} failed to start: {service.message}")
    if is_late and wait_s > 0:
        raise ServiceError(f"{what} is still {service.state} after {wait_s:g} s")
    return is_late


def _fields(spec: str | Path | Spec | Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    if isinstance(spec, str | Path):
        from eagleray.specs import ServiceSpec, load

        spec = load(ServiceSpec, spec, overrides)
    elif overrides:
        raise InputError("overrides are for the path of a spec; change the fields themselves")
    if isinstance(spec, Mapping):
        return {"kind": "service", **spec}
    return spec.model_dump(mode="json")


def _nothing(_: Any) -> None:
    return None
