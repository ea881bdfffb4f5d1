"""The platform itself: a local cluster as `eagleray up` starts it, models published and deployed on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import bodies
import httpx
import place  # first: it says where eagleray is
import running
import workloads
from kit.results import NotAvailable, RowFailed

UP_S = 180.0
READY_S = 180.0
CPUS = 0.2
"""Of a replica: all of them fit on one node, and torch has one thread in each."""
DEPLOYED: dict[str, dict[str, Any]] = {
    "tiny": {"max_batch_size": 64},
    "mlp": {"max_batch_size": 64},
    "large": {"max_batch_size": 32},
    "wide": {"max_batch_size": 32},
    "gpt": {"max_batch_size": 16},
    "small-gpt": {"max_batch_size": 32},
}
"""What each service says beside its name."""
_QUEUED = 1000

UNBOUND = {"requests_per_s": 1e6, "bytes_per_s": 1e11, "tokens_per_s": 1e8, "concurrency": 10_000}
"""Limits of the benchmark's key: all are counted, and none is ever reached."""


class Ours:
    """The cluster, from the first `up` on."""

    title = "Eagleray"

    def __init__(self) -> None:
        self._state: Any = None
        self._admin: httpx.Client | None = None
        self._key = self._failure = ""
        self._versions: dict[str, int] = {}

    def up(self) -> None:
        """Return when the ingress answers; at once where it does. Raises: RowFailed."""
        if self._failure:
            raise RowFailed(self._failure)
        if self._state is None:
            try:
                self._start()
            except Exception as error:
                self._failure = f"the cluster did not come up: {type(error).__name__}: {error}"
                raise RowFailed(self._failure) from error

    def _start(self) -> None:
        from eagleray.cluster import local, processes

        state = place.up()
        if not processes.wait_until(
            lambda: local.is_ingress_ready(state) and state.admin_key_path.exists(), timeout_s=UP_S
        ):
            log = state.logs_dir / "serving.log"
            raise RowFailed(f"the ingress does not answer after {UP_S:.0f} s; {_tail(log)}")
        assert state.ingress_url is not None
        self._admin = httpx.Client(
            base_url=state.ingress_url,
            headers=bodies.bearer(state.admin_key_path.read_text().strip()),
            timeout=60,
            trust_env=False,
        )
        self._state = state
        self._key = self.key("bench", **UNBOUND)

    def down(self) -> None:
        """End it."""
        if self._admin is not None:
            self._admin.close()
        self._admin = self._state = None
        self._versions.clear()
        place.down()

    @property
    def admin(self) -> httpx.Client:
        """The admin API."""
        assert self._admin is not None
        return self._admin

    @property
    def url(self) -> str:
        """Of the ingress."""
        return str(self.admin.base_url).rstrip("/")

    @property
    def port(self) -> int:
        """Of the ingress."""
        port = self.admin.base_url.port
        assert port is not None
        return port

    @property
    def key_text(self) -> str:
        """A key of scope `infer`: every request has one, so that admission is whole."""
        return self._key

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return bodies.bearer(self._key)

    def key(self, name: str, **terms: Any) -> str:
        """A new key's text. Raises: NotAvailable where keys cannot have such terms."""
        asked = {"name": name, "scopes": ["infer"]} | ({"terms": terms} if terms else {})
        answer = self.admin.post("/admin/keys", json=asked)
        if answer.status_code not in (200, 201):
            raise _refusal(f"POST /admin/keys with {sorted(terms)}", answer)
        return answer.json()["key"]

    def extensions(self) -> list[str]:
        """Of the protocol, as GET /v2 announces them."""
        return self.admin.get("/v2").json().get("extensions", [])

    def require_binary(self) -> None:
        """Raises: NotAvailable where binary tensors are not announced."""
        if "binary_tensor_data" not in (found := self.extensions()):
            raise NotAvailable(f"GET /v2 announces no binary_tensor_data: {found}")

    def publish(self, name: str, model: str) -> int:
        """A new version called `name` of one of the benchmark's models; its number."""
        from eagleray.cluster import settings
        from eagleray.registry.models import MlflowModels

        store = MlflowModels(settings.tracking_uri(), settings.storage_url())
        card = workloads.card(model).model_copy(update={"name": name})
        return store.publish(card, workloads.module(model).state_dict()).version

    def serve(self, model: str) -> None:
        """Have one of the benchmark's models ready, deployed once."""
        self.up()
        if model not in self._versions:
            self._versions[model] = self.publish(model, model)
            self.deploy(model, self._versions[model], **DEPLOYED[model])

    def deploy(self, name: str, version: int, **service: Any) -> None:
        """Return when this version answers with these settings.

        Raises:
            NotAvailable: services have no such setting.
            RowFailed: it did not get ready.
        """
        spec = {
            "name": name,
            "version": version,
            "cpus_per_replica": CPUS,
            "max_queued_requests": _QUEUED,
            **service,
        }
        answer = self.admin.post("/admin/deploy", json=spec)
        if answer.status_code != 202:
            raise _refusal(f"POST /admin/deploy with {sorted(service)}", answer)
        deadline = time.monotonic() + READY_S
        while not self._is_ready(name, version, int(service.get("min_replicas", 1))):
            if time.monotonic() > deadline:
                raise RowFailed(
                    f"{name} version {version} is not ready after {READY_S:.0f} s: {self.services(name)}"
                )
            time.sleep(0.2)

    def _is_ready(self, name: str, version: int, replicas: int) -> bool:
        """Whether the version is ready, with so many replicas at least, and no other is left."""
        found = self.services(name)
        return [one["version"] for one in found] == [version] and all(
            one["state"] == "ready" and one.get("replicas", 0) >= replicas for one in found
        )

    def services(self, name: str) -> list[dict[str, Any]]:
        """The deployed versions of a model."""
        answer = self.admin.get("/admin/services")
        found = answer.json().get("services", []) if answer.status_code == 200 else []
        return [one for one in found if one["name"] == name]

    def undeploy(self, name: str) -> None:
        """End every version of a model."""
        self.admin.post("/admin/undeploy", json={"name": name})
        self._versions.pop(name, None)

    def replace_gateways(self) -> None:
        """Have all gateways replaced, as for a new setting; returns when those before have ended.

        Raises:
            NotAvailable: there is no way to ask.
            RowFailed: they were not replaced.
        """
        before = set(self.gateways())
        answer = self.admin.post("/admin/gateways/restart")
        if answer.status_code >= 300:
            raise _refusal("POST /admin/gateways/restart", answer)
        deadline = time.monotonic() + READY_S
        while before & set(self.gateways()) or not self._are_gateways_settled():
            if time.monotonic() > deadline:
                raise RowFailed(f"the gateways are not replaced after {READY_S:.0f} s")
            time.sleep(0.2)

    def _are_gateways_settled(self) -> bool:
        try:
            answer = self.admin.get("/admin/gateways")
        except httpx.TransportError:  # on a connection to one that ends
            return False
        return answer.status_code == 200 and answer.json()["is_settled"]

    # ---- its processes

    def gateways(self) -> list[int]:
        """Processes that take requests: they listen on the public port. Raises: NotAvailable for none."""
        found = running.listeners(self.port)
        if not found:
            raise NotAvailable(f"no process of this user listens on port {self.port}")
        return found

    def processes(self) -> list[int]:
        """Every process of the cluster."""
        from eagleray.cluster import processes

        return [one.pid for one in processes.belonging(self._state.marker)]

    def replicas(self, name: str) -> list[int]:
        """The processes of a model's replicas, by their titles."""
        return [
            pid
            for pid in self.processes()
            if "ServeReplica" in (said := running.command(pid)) and f"m--{name}--" in said
        ]

    def controller_logs(self) -> list[Path]:
        """Of Serve's controller: what wants which number of replicas is said there."""
        return sorted(self._state.runtime_dir.glob("*/session_2*/logs/serve/controller_*.log"))


def _tail(path: Path, lines: int = 8) -> str:
    """The end of a log, if there is one."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"{path}: {error.strerror}"


def _refusal(asked: str, answer: httpx.Response) -> Exception:
    """NotAvailable where what was asked for is not known, RowFailed where it is, and did not go well."""
    try:
        text = answer.json().get("error", answer.text)
    except ValueError:
        text = answer.text
    kind = NotAvailable if 400 <= answer.status_code < 500 else RowFailed
    return kind(f"{asked}: {answer.status_code} {str(text)[:200]}")
