"""An ingress without Ray: cards of four models, a transport and a control plane that only pretend."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from eagleray.errors import EaglerayError, ModelNotFound
from eagleray.protocol.generation import GenerationChunk, GenerationRequest, Token
from eagleray.protocol.key_terms import KeyTerms
from eagleray.protocol.tensors import Array
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.gateway.face import Face
from eagleray.serving.gateway.lane import Lane
from eagleray.serving.gateway.process import Gateway
from eagleray.serving.gateway.rules import Rules
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.gateway.thread import LoopThread
from eagleray.serving.ingress import IngressApp
from eagleray.serving.ingress.metrics import IngressMetrics
from eagleray.serving.keys import KeyRing
from eagleray.serving.routes import ModelRoute, Routes, Target
from eagleray.serving.state import IngressState, Limits
from eagleray.specs import Signature
from eagleray.specs.card import Architecture, Lineage, ModelCard, inputs_of, outputs_of
from support.linked import LinkedTransport

FEATURES = ("sepal length", "sepal width", "petal length", "petal width")
SIGNATURES = {
    "digits": Signature(
        input_kind="image", input_shape=(1, 8, 8), target_kind="class", num_classes=10,
        labels=tuple("0123456789"),
    ),
    "iris": Signature(
        input_kind="tabular", input_shape=(4,), target_kind="class", num_classes=3,
        labels=("setosa", "versicolor", "virginica"), feature_names=FEATURES,
    ),
    "tones": Signature(
        input_kind="audio", input_shape=(800,), sample_rate_hz=8000, target_kind="value", target_shape=(1,)
    ),
    "gpt": Signature(
        input_kind="text", input_shape=(64,), target_kind="tokens", target_shape=(64,), vocabulary_size=258,
        tokenizer="bytes", padding_token=256,
    ),
    "reviews": Signature(
        input_kind="text", input_shape=(64,), target_kind="class", num_classes=2, labels=("bad", "good"),
        vocabulary_size=258, tokenizer="bytes", padding_token=256,
    ),
}  # fmt: skip


def card(name: str) -> ModelCard:
    """The card of one of the models above."""
    signature = SIGNATURES[name]
    return ModelCard(
        name=name,
        architecture=Architecture(arguments={"spec": {"kind": "gpt" if name == "gpt" else "mlp"}}),
        signature=signature,
        inputs=inputs_of(signature),
        outputs=outputs_of(signature),
        metrics={"accuracy": 0.5},
        lineage=Lineage(run_id="r1", dataset_digest="d", code_version="c", created_at=1000.0),
    )


def target(name: str, version: int = 1, **changes: Any) -> Target:
    """A deployed version of one of the models above."""
    found = Target(name, version, f"m--{name}--v{version}", card(name), "0" * 64, "ready", 100)
    return replace(found, **changes)


def routes() -> Routes:
    """All of them; digits in versions 2 (the default) and 3 (candidate)."""
    models = {name: ModelRoute(1, {}, {1: target(name)}) for name in SIGNATURES}
    models["digits"] = ModelRoute(2, {"candidate": 3}, {n: target("digits", n) for n in (2, 3)})
    return Routes(1, models)


class PretendTransport:
    """Answers at once by a rule that a test can compute; what it is asked is kept in `asked`."""

    def __init__(self) -> None:
        self.asked: list[tuple[Target, Mapping[str, Array]]] = []
        self.requests: list[GenerationRequest] = []
        self.keys: list[str] = []
        """Of those requests."""
        self.seconds: list[bool] = []
        """Of what it is asked, whether it was told that it is a second try."""
        self.num_open = 0
        """Requests that have begun and are not ended."""
        self.error: Exception | None = None
        """Raised by everything, while there is one."""
        self.pause_s = 0.0
        """Before an answer, and between pieces of text."""
        self.is_holding = False
        """While it is, no answer and no piece of text comes; set by any thread."""
        self.pauses_after = 0
        """So many pieces of text come without a pause."""
        self.change: Callable[[dict[str, Array]], dict[str, Array]] = lambda outputs: outputs
        self.breaks_after = 10**9
        """Pieces of text until `error` is raised."""

    async def infer(
        self,
        target: Target,
        inputs: Mapping[str, Array],
        *,
        timeout_s: float,
        ticket: Ticket | None = None,
        is_second: bool = False,
    ) -> dict[str, Array]:
        self.asked.append((target, dict(inputs)))
        self.seconds.append(is_second)
        if self.error is not None:
            raise self.error
        self.num_open += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._pause(self.pause_s)
        finally:
            self.num_open -= 1
        return self.change(outputs_for(target.card, inputs))

    async def generate(
        self,
        target: Target,
        request: GenerationRequest,
        *,
        key: str = "",
        timeout_s: float | None = None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        """The prompt's characters, over and over, one a piece, up to `max_tokens`."""
        self.requests.append(request)
        self.keys.append(key)
        self.num_open += 1
        try:
            for made in range(1, request.max_tokens + 1):
                if self.error is not None and (made > self.breaks_after or self.breaks_after == 10**9):
                    raise self.error
                await self._pause(self.pause_s if made > self.pauses_after else 0)
                text = request.prompt[(made - 1) % len(request.prompt)]
                reason = "length" if made == request.max_tokens else None
                tokens = (Token(ord(text), text, -0.5 * made),) if request.with_tokens else ()
                yield GenerationChunk(text, reason, len(request.prompt), made, tokens)
        finally:
            self.num_open -= 1

    async def _pause(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        while self.is_holding:
            await asyncio.sleep(0.001)


def with_model(routes: Routes, name: str, route: ModelRoute | None) -> Routes:
    """These routes, one generation on, with `route` for `name`, or without `name` where it is None."""
    models = {other: found for other, found in routes.models.items() if other != name}
    if route is not None:
        models[name] = route
    return Routes(routes.generation + 1, models)


def outputs_for(of: ModelCard, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the pretending models answer: the class is the sum of a sample's values modulo the classes."""
    [values] = inputs.values()
    size = len(values)
    if values.dtype.kind == "O":
        sums = np.array([len(text) for text in values], np.float64)
    else:
        sums = values.reshape(size, -1).sum(axis=1, dtype=np.float64)
    if of.signature.target_kind == "value":
        return {"value": sums.astype(np.float32)[:, None]}
    num_classes = of.signature.num_classes
    assert num_classes is not None
    classes = (np.round(sums).astype(np.int64)) % num_classes
    probabilities = np.full((size, num_classes), 0.5 / (num_classes - 1), np.float32)
    probabilities[np.arange(size), classes] = 0.5
    labels = np.array([of.signature.labels[index] for index in classes])
    return {"label": labels, "class": classes, "probabilities": probabilities}


def run(number: int) -> dict[str, Any]:
    """A run of the spec `digits`, as the tracking describes it: 0 is the newest."""
    return {
        "id": f"digits-20260131-12000{9 - number}-1f2e", "name": "digits", "kind": "train",
        "status": "finished" if number else "running", "started_at": 1000.0 - number,
        "metric": "test_accuracy" if number else None, "value": 0.5 if number else None,
    }  # fmt: skip


def claims() -> dict[str, Any]:
    """Two nodes, of which a run gives one to a service; as the ledger reports it."""
    run = {
        "id": "gpt-7f3a", "holder": "run gpt-7f3a", "bundle": {"CPU": 1.0}, "minimum": 1, "wanted": 2,
        "budget": None, "label_selector": {}, "held": {"aa": 1, "bb": 1}, "used": {"aa": 1, "bb": 1},
        "classes": {"training minimum": 1, "training share": 1}, "first_class": "training minimum",
        "opened_s": 900.0, "renewed_s": 1000.0, "wait": None,
        "notice": {
            "give": {"bb": 1}, "keep": {"aa": 1}, "deadline_s": 1007.4, "left_s": 7.4, "is_suspension": False,
            "is_evicted": False, "reason": "needed by service digits version 2",
            "wanted_by": ["serve:m--digits--v2"],
        },
    }  # fmt: skip
    digits = {
        **run, "id": "serve:m--digits--v2", "holder": "service digits version 2", "minimum": 0, "wanted": 1,
        "held": {}, "used": {}, "classes": {}, "first_class": "serving burst", "notice": None,
        "wait": {
            "units": 1, "cause": "yield", "waits_for": ["gpt-7f3a"], "since_s": 998.0,
            "reason": "waits for run gpt-7f3a to give it back",
        },
    }  # fmt: skip
    nodes = [
        {
            "id": 2 * name, "name": f"node-{name}", "type": "cpu", "labels": {}, "is_draining": False,
            "total": {"CPU": 2.0, "memory": 1e9}, "other": {"CPU": 0.5} if name == "a" else {"memory": 1e6},
            "is_on_demand": True,
        }
        for name in "ab"
    ]  # fmt: skip
    return {
        "trouble": "", "time_s": 1000.0, "epoch": 3, "nodes": nodes, "claims": [digits, run], "asks": [],
    }  # fmt: skip


@dataclass
class PretendAdmin:
    """A control plane that keeps its few things in memory, and changes the app's state as a real one does."""

    app: IngressApp | None = None
    ring: KeyRing = field(default_factory=KeyRing)
    deployed: list[dict[str, Any]] = field(default_factory=list)
    promoted: list[tuple[str, int, str]] = field(default_factory=list)
    runs_known: list[dict[str, Any]] = field(default_factory=lambda: list(map(run, range(3))))
    error: EaglerayError | None = None
    held: dict[str, Any] = field(default_factory=claims)
    fleet: dict[str, int] = field(default_factory=lambda: {"number": 1, "restarts": 0})

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    async def status(self) -> dict[str, Any]:
        self._check()
        return {"version": "0", "cluster": "pretend", "nodes": 1, "models": len(SIGNATURES)}

    async def models(self) -> list[dict[str, Any]]:
        self._check()
        return [{"name": name, "versions": [1], "aliases": {}} for name in SIGNATURES]

    async def model(self, name: str) -> dict[str, Any]:
        if name not in SIGNATURES:
            raise ModelNotFound(f"no model {name!r}; there are: {', '.join(SIGNATURES)}")
        return {"name": name, "versions": [self._version(n) for n in (1, 2)]}

    def _version(self, number: int) -> dict[str, Any]:
        return {
            "version": number,
            "digest": "0" * 64,
            "aliases": ["candidate"] if number == 2 else [],
            "metrics": {"accuracy": 0.5},
            "lineage": card("digits").lineage.model_dump(mode="json"),
            "created_at": 1000.0,
        }

    async def promote(self, name: str, version: int, alias: str) -> dict[str, Any]:
        await self.model(name)
        self.promoted.append((name, version, alias))
        return {"name": name, "version": version, "alias": alias}

    async def runs(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        self._check()
        return [run for run in self.runs_known if name in (None, run["id"], run["name"])][:limit]

    async def services(self) -> list[dict[str, Any]]:
        assert self.app is not None
        return [
            {
                "name": name, "version": n, "state": found.state, "replicas": 1, "spec": {"kind": "service"},
                "message": found.message,
            }
            for name, route in self.app.state.routes.models.items()
            for n, found in route.versions.items()
        ]  # fmt: skip

    async def deploy(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        self._check()
        if spec.get("name") not in SIGNATURES:
            raise ModelNotFound(f"no model {spec.get('name')!r}; there are: {', '.join(SIGNATURES)}")
        self.deployed.append(dict(spec))
        assert self.app is not None
        name, version = spec["name"], spec.get("version")
        version = version if isinstance(version, int) else 1
        route = ModelRoute(version, {}, {version: target(name, version)})
        self._set(routes=with_model(self.app.state.routes, name, route))
        return {"name": name, "version": version, "state": "starting"}

    async def undeploy(self, name: str, version: int | None) -> dict[str, Any]:
        assert self.app is not None
        self.app.state.routes.resolve(name)
        versions = sorted(self.app.state.routes.models[name].versions)
        self._set(routes=with_model(self.app.state.routes, name, None))
        return {"name": name, "versions": versions if version is None else [version]}

    async def claims(self) -> dict[str, Any]:
        self._check()
        return self.held

    async def gateways(self) -> dict[str, Any]:
        self._check()
        return {**self.fleet, "running": self.fleet["number"], "is_settled": True, "message": ""}

    async def restart_gateways(self) -> dict[str, Any]:
        self.fleet["restarts"] += 1
        return {**await self.gateways(), "is_settled": False}

    async def scale_gateways(self, number: int) -> dict[str, Any]:
        self.fleet["number"] = number
        return {**await self.gateways(), "is_settled": False}

    async def keys(self) -> list[dict[str, Any]]:
        return [key.to_public() for key in self.ring.keys.values()]

    async def create_key(
        self, name: str, scopes: Sequence[str], terms: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        self.ring, key, text = self.ring.create(name, scopes, KeyTerms.from_json(terms or {}))
        self._set(keys=self.ring)
        return {**key.to_public(), "key": text}

    async def rotate_key(self, key_id: str, overlap_s: float) -> dict[str, Any]:
        self.ring, key, text = self.ring.rotate(key_id, overlap_s)
        self._set(keys=self.ring)
        return {**key.to_public(), "key": text}

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        self.ring = self.ring.revoke(key_id)
        self._set(keys=self.ring)
        return {"id": key_id}

    def _set(self, **changes: Any) -> None:
        assert self.app is not None
        self.app.state = replace(self.app.state, **changes)


@dataclass
class Pretend:
    """An ingress and what stands behind it."""

    app: IngressApp
    transport: PretendTransport
    admin: PretendAdmin
    admin_key: str
    infer_key: str
    url: str = "http://127.0.0.1"
    links: LinkedTransport | None = None
    """Between the app and the transport, where there are any."""
    gateway: Gateway | None = None
    """Where it is served."""
    thread: LoopThread | None = None
    """With the gateway's loop."""
    client: httpx.Client | None = None
    """To that, where it has a fast lane."""

    @property
    def metrics(self) -> IngressMetrics:
        """Of the ingress, whatever stands before it."""
        assert self.admin.app is not None
        return self.admin.app.metrics

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request, without a socket where there is no lane; its answer read to the end."""
        if self.client is not None:
            return self.client.request(method, path, **arguments)

        async def exchange() -> httpx.Response:
            door = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=door, base_url=self.url) as client:
                try:
                    return await client.request(method, path, **arguments)
                finally:
                    if self.links is not None:
                        await self.links.leave()

        return asyncio.run(exchange())

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        """GET."""
        return self.ask("GET", path, **arguments)

    def post(self, path: str, values: Any = None, **arguments: Any) -> httpx.Response:
        """POST of JSON, or of `content`."""
        return self.ask("POST", path, **arguments, **({} if "content" in arguments else {"json": values}))

    def set(self, **changes: Any) -> None:
        """Change the ingress's state."""
        self.app.state = replace(self.app.state, **changes)


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def pretend(*, both_scopes: bool = False, over_links: bool = False, **limits: Any) -> Pretend:
    """An ingress with two keys, one for each scope; inference needs none."""
    ring, _, admin_key = KeyRing().create("admin", ["infer", "admin"] if both_scopes else ["admin"])
    ring, _, infer_key = ring.create("infer", ["infer"])
    transport, admin = PretendTransport(), PretendAdmin(ring=ring)
    state = IngressState(routes=routes(), keys=ring, limits=Limits(**limits))
    links = LinkedTransport(transport) if over_links else None
    admin.app = IngressApp(state, links or transport, admin)
    if links is not None:
        admin.app.gate_of = links.gate
    return Pretend(admin.app, transport, admin, admin_key, infer_key, links=links)


@contextmanager
def serving(
    ingress: Pretend,
    *,
    port: int = 0,
    settings: GatewaySettings | None = None,
    rules: Rules | None = None,
) -> Iterator[Pretend]:
    """The ingress under a gateway, on a free port of this machine, in a thread of its own.

    With links: their requests take the fast lane.
    """
    thread = ingress.thread = LoopThread("gateway")
    with tempfile.TemporaryDirectory() as folder:
        lane = thread.submit(_lane(ingress, ingress.links)).result(10) if ingress.links else None
        gateway = Gateway(
            ingress.app,
            settings or GatewaySettings(),
            host="127.0.0.1",
            port=port,
            directory=Path(folder),
            on_refused=_app_of(ingress).refused,
            rules=rules,
            connection=Face if lane is None else lane.connection,
        )
        try:
            thread.submit(gateway.open()).result(10)
            ingress.url, ingress.gateway = f"http://127.0.0.1:{gateway.port}", gateway
            if lane is not None:
                ingress.client = httpx.Client(base_url=ingress.url, trust_env=False, verify=False, timeout=60)
            yield ingress
        finally:
            if ingress.client is not None:
                ingress.client.close()
            if gateway.is_listening:
                thread.submit(gateway.close(5.0, notice_s=0.0)).result(10)
            if ingress.links is not None:
                thread.submit(ingress.links.leave()).result(10)
            thread.stop()


def _app_of(ingress: Pretend) -> IngressApp:
    """The application, whatever a test has put before it."""
    assert ingress.admin.app is not None
    return ingress.admin.app


async def _lane(ingress: Pretend, links: LinkedTransport) -> Lane:
    app = _app_of(ingress)
    targets = [found for route in app.state.routes.models.values() for found in route.versions.values()]
    return Lane(app, await links.linked(*targets))
