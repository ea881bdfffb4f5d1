"""What is to be served: the controller's whole memory, as one immutable value that is kept on disk.

The functions at the end say how it changes when somebody deploys or undeploys; `reconcile` says what is left
to do until Serve runs what is written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eagleray.errors import ModelNotFound
from eagleray.serving.control_settings import INGRESS_APP
from eagleray.serving.gateway.orders import GatewayOrders
from eagleray.serving.keys import KeyRing
from eagleray.serving.routes import ModelRoute, Routes, Target
from eagleray.specs import ModelCard, ServiceSpec
from eagleray.specs.service import FORMER

APP_PREFIX = "m--"
LINK_KEY_BYTES = 32
_FORMAT = 1
_RESTARTING = {"allow_code", "max_batch_size", "name"}
"""Settings that a replica reads once, when it starts."""

_OF_THE_INGRESS = {"default", "version", "cache_mib"}
"""Settings that no replica reads."""


def app_name(name: str, version: int) -> str:
    """The Serve application of one model version."""
    return f"{APP_PREFIX}{name}--v{version}"


def is_ours(app: str) -> bool:
    """Whether an application of Serve is one of Eagleray's, by its name: the ingress, or a model version."""
    return app == INGRESS_APP or app.startswith(APP_PREFIX)


@dataclass(frozen=True)
class ServedVersion:
    """One model version that is, or is to be, one Serve application."""

    spec: ServiceSpec
    version: int
    url: str
    """Its package."""
    digest: str
    """The package's identity."""
    card: ModelCard
    deployed_at: float
    """Seconds since the epoch."""
    is_ready: bool = False
    """It has answered since its application was made."""
    failure: str = ""
    """Why it was given up, where it was."""
    retries: int = 0
    """How often it was started again because its first replica did not come up."""
    applied_at: float = 0.0
    """When Serve was first handed it."""
    start_s: float = 0.0
    """How long it took from then until it answered; 0 where it has not."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def app(self) -> str:
        """Its Serve application."""
        return app_name(self.spec.name, self.version)

    @property
    def fingerprint(self) -> str:
        """Of all that its application is made from: another one must be handed to Serve."""
        return _digest([self.url, self.digest, self.spec.model_dump(exclude=_OF_THE_INGRESS)])

    @property
    def restart_fingerprint(self) -> str:
        """Of what a running replica cannot change."""
        return _digest([self.url, self.digest, self.spec.model_dump(include=_RESTARTING)])

    def target(self) -> Target:
        """What the ingress has to know of it."""
        state = "failed" if self.failure else "ready" if self.is_ready else "starting"
        return Target(
            name=self.name,
            version=self.version,
            app=self.app,
            card=self.card,
            digest=self.digest,
            state=state,
            max_queued=self.spec.max_queued_requests,
            message=self.failure,
            cache_bytes=int(self.spec.cache_mib * 2**20),
        )


@dataclass(frozen=True)
class Service:
    """The served versions of one model."""

    default: int
    """The version that the plain name leads to."""
    wanted: int
    """The version that it is to lead to as soon as that is ready."""
    versions: Mapping[int, ServedVersion]
    aliases: Mapping[str, int] = field(default_factory=dict)
    """Those of the registry, as last seen."""

    def with_version(self, version: ServedVersion) -> Service:
        """The service with this version in place of the one of its number."""
        return replace(self, versions={**self.versions, version.version: version})

    def without(self, gone: int) -> Service | None:
        """The service without a version; None where it was the last one."""
        left = {number: version for number, version in self.versions.items() if number != gone}
        if not left:
            return None
        usable = [number for number, version in left.items() if not version.failure]
        default = self.default if self.default != gone else max(usable or left)
        wanted = self.wanted if self.wanted != gone and self.wanted in left else default
        return replace(self, default=default, wanted=wanted, versions=left)

    def route(self) -> ModelRoute:
        """What the ingress has to know of it."""
        targets = {number: version.target() for number, version in self.versions.items()}
        return ModelRoute(default=self.default, aliases=dict(self.aliases), versions=targets)


@dataclass(frozen=True)
class Retiring:
    """An application that no route leads to any more; it ends once the ingress has nothing under way."""

    served: ServedVersion
    since: float
    """Seconds since the epoch."""
    is_deleted: bool = False
    """Serve was told to end it."""


@dataclass(frozen=True)
class Trouble:
    """Why an application that has answered has no replica, though one was to start."""

    tries: int
    """So many starts in a row have failed."""
    reason: str
    is_final: bool
    """The next one would fail, too."""


@dataclass(frozen=True)
class Record:
    """All that the controller must not forget."""

    revision: int = 0
    """Grows with every change that the ingress has to know."""
    services: Mapping[str, Service] = field(default_factory=dict)
    retiring: Mapping[str, Retiring] = field(default_factory=dict)
    """By application."""
    applied: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of what Serve was last handed, by application."""
    keys: KeyRing = field(default_factory=KeyRing)
    has_started_serve: bool = False
    """Whether Serve is ours to end."""
    link_key: str = field(default="", repr=False)
    """What gateways and replicas know each other by: 32 bytes as hexadecimal; made by the controller."""
    ailing: Mapping[str, Trouble] = field(default_factory=dict)
    """By application; as last seen, and not kept on disk."""

    gateways: GatewayOrders = field(default_factory=GatewayOrders)

    @property
    def draining(self) -> list[str]:
        """Applications for which the ingress is asked whether it has something under way there."""
        return sorted(app for app, retiring in self.retiring.items() if not retiring.is_deleted)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is on its way."""
        return not self.retiring and all(
            service.default == service.wanted
            and all(version.is_ready or version.failure for version in service.versions.values())
            for service in self.services.values()
        )

    @property
    def starts(self) -> dict[str, float]:
        """How long each application took to start, in seconds, where that is known."""
        return {
            version.app: version.start_s
            for service in self.services.values()
            for version in service.versions.values()
            if version.start_s
        }

    def routes(self) -> Routes:
        """What the ingress routes by."""
        return Routes(self.revision, {name: service.route() for name, service in self.services.items()})

    def version(self, name: str, number: int) -> ServedVersion:
        """One served version; KeyError where there is none."""
        return self.services[name].versions[number]

    def serves(self, name: str, number: int) -> bool:
        """Whether this version is to be served."""
        return name in self.services and number in self.services[name].versions

    def with_service(self, name: str, service: Service | None) -> Record:
        """The record with this service for `name`, or with none."""
        others = {other: found for other, found in self.services.items() if other != name}
        return replace(self, services=others if service is None else {**others, name: service})

    def with_version(self, version: ServedVersion) -> Record:
        """The record with this version in place of the one of its name and number."""
        return self.with_service(version.name, self.services[version.name].with_version(version))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": _FORMAT,
            "revision": self.revision,
            "services": {name: _service_to_json(service) for name, service in self.services.items()},
            "retiring": [
                {**vars(retiring), "served": _version_to_json(retiring.served)}
                for retiring in self.retiring.values()
            ],
            "applied": dict(self.applied),
            "keys": self.keys.to_json(),
            "has_started_serve": self.has_started_serve,
            "link_key": self.link_key,
            "gateways": self.gateways.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        """What `to_json` gave. Raises: ValueError, KeyError or TypeError where it is something else."""
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']}, not {_FORMAT}")
        retiring = [
            Retiring(**{**entry, "served": _version_from_json(entry["served"])})
            for entry in values["retiring"]
        ]
        return cls(
            revision=int(values["revision"]),
            services={name: _service_from_json(entry) for name, entry in values["services"].items()},
            retiring={entry.served.app: entry for entry in retiring},
            applied=dict(values["applied"]),
            keys=KeyRing.from_json(values["keys"]),
            has_started_serve=bool(values["has_started_serve"]),
            link_key=_link_key(values.get("link_key", "")),  # older records have none
            gateways=GatewayOrders.from_json(values.get("gateways", {})),
        )


def deploy(record: Record, served: ServedVersion) -> Record:
    """The record with `served` as a version to run; with `spec.default`, the plain name is to lead to it.

    A version that is being retired comes back as it is; failed ones are forgotten.
    """
    service = record.services.get(served.name)
    known = record.retiring.get(served.app)
    if service is not None and served.version in service.versions:
        served = _as_it_is(served, service.versions[served.version])
    elif known is not None and not known.is_deleted:
        served = _as_it_is(served, known.served)
        left = {app: retiring for app, retiring in record.retiring.items() if app != served.app}
        record = replace(record, retiring=left)
    if service is None:
        service = Service(default=served.version, wanted=served.version, versions={})
    kept = {number: version for number, version in service.versions.items() if not version.failure}
    service = replace(service, versions=kept).with_version(served)
    if service.default not in service.versions:
        service = replace(service, default=served.version)
    if served.spec.default or service.wanted not in service.versions:
        service = replace(service, wanted=served.version)
    return record.with_service(served.name, service)


def _as_it_is(served: ServedVersion, before: ServedVersion) -> ServedVersion:
    """What is to be served from now on, as far as it runs already."""
    return replace(served, is_ready=before.is_ready, applied_at=before.applied_at, start_s=before.start_s)


def undeploy(record: Record, name: str, version: int | None, now_s: float) -> tuple[Record, list[int]]:
    """The record without one version of `name`, or without any; and the versions that go.

    Raises:
        ModelNotFound: it is not deployed; the message says what is.
    """
    service = record.services.get(name)
    if service is None:
        known = ", ".join(sorted(record.services)) or "none"
        raise ModelNotFound(f"no model {name!r} is deployed; deployed: {known}")
    if version is not None and version not in service.versions:
        known = ", ".join(str(number) for number in sorted(service.versions))
        raise ModelNotFound(f"version {version} of model {name!r} is not deployed; deployed: {known}")
    going = sorted(service.versions) if version is None else [version]
    for number in going:
        record = retire(record, name, number, now_s)
    return record, going


def retire(record: Record, name: str, version: int, now_s: float) -> Record:
    """The record without a route to this version, and with its application on the list of those to end."""
    service = record.services[name]
    served = service.versions[version]
    record = record.with_service(name, service.without(version))
    if served.failure:
        return record
    return replace(record, retiring={**record.retiring, served.app: Retiring(served, now_s)})


def _link_key(value: Any) -> str:
    if value and len(bytes.fromhex(value)) != LINK_KEY_BYTES:
        raise ValueError(f"link_key is not {LINK_KEY_BYTES} bytes")
    return value


def _service_to_json(service: Service) -> dict[str, Any]:
    return {
        "default": service.default,
        "wanted": service.wanted,
        "aliases": dict(service.aliases),
        "versions": [_version_to_json(version) for version in service.versions.values()],
    }


def _service_from_json(values: Mapping[str, Any]) -> Service:
    versions = [_version_from_json(entry) for entry in values["versions"]]
    return Service(
        default=int(values["default"]),
        wanted=int(values["wanted"]),
        versions={version.version: version for version in versions},
        aliases={alias: int(version) for alias, version in values["aliases"].items()},
    )


def _version_to_json(version: ServedVersion) -> dict[str, Any]:
    return {
        **vars(version),
        "spec": version.spec.model_dump(mode="json"),
        "card": version.card.model_dump(mode="json"),
    }


def _version_from_json(values: Mapping[str, Any]) -> ServedVersion:
    # A record may be older than what is installed.
    known = {key: value for key, value in values["spec"].items() if key not in FORMER}
    spec = ServiceSpec.model_validate(known)
    card = ModelCard.model_validate(values["card"])
    return ServedVersion(**{**values, "spec": spec, "card": card})


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
