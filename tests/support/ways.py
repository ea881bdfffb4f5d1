"""The ways that a request may take to one replica: by Serve's handles, over links, by the fast lane."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagleray.cluster import loopback_ray260
from eagleray.packaging import Folder, open_package, write_package
from eagleray.protocol.generation import GenerationChunk
from eagleray.serving.gateway.face import Face
from eagleray.serving.gateway.lane import Lane
from eagleray.serving.gateway.link_transport import LinkTransport
from eagleray.serving.gateway.lookup_ray260 import Running
from eagleray.serving.gateway.process import Gateway
from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.gateway.thread import LoopThread
from eagleray.serving.ingress import IngressApp
from eagleray.serving.keys import KeyRing
from eagleray.serving.model_app import ModelReplica, arguments_of
from eagleray.serving.routes import ModelRoute, Routes, Target
from eagleray.serving.serve_transport_ray260 import ServeTransport
from eagleray.serving.state import IngressState, Limits
from eagleray.specs import ServiceSpec
from support.cards import card, weights
from support.linked import LINKS, NoLookup
from support.links import has_link
from support.serving import PretendAdmin

WAYS = ("by Serve", "over links", "by the lane", "by the lane and Serve")
"""The last one has no links: all falls back."""
KINDS = {"digits": "image", "reviews": "text", "gpt": "tokens"}
MAX_ONGOING, MAX_QUEUED = 16, 4


class Handle:
    """Stands for a Serve handle: calls the replica in this process, as Serve would in another one."""

    replicas: Mapping[str, ModelReplica] = {}
    """By application."""

    def __init__(
        self, _deployment: str, app: str, method: str = "", under_way: list[int] | None = None
    ) -> None:
        self._app, self._method = app, method
        self._under_way = [0] if under_way is None else under_way

    def options(self, *, method_name: str, stream: bool = False, _by_reference: bool = True) -> Handle:
        """For one method."""
        return Handle("", self._app, method_name, self._under_way)

    def remote(self, argument: Any, *more: Any) -> Any:
        """Its answer to come."""
        from ray.serve.exceptions import BackPressureError

        method = getattr(self.replicas[self._app], self._method)
        if self._method == "generate":
            return Chunks(method(argument, *more))
        if self._under_way[0] >= MAX_ONGOING + MAX_QUEUED:
            raise BackPressureError(num_queued_requests=MAX_QUEUED, max_queued_requests=MAX_QUEUED)
        return asyncio.ensure_future(self._counted(method({k: np.array(v) for k, v in argument.items()})))

    async def _counted(self, work: Any) -> Any:
        self._under_way[0] += 1
        try:
            return await work
        finally:
            self._under_way[0] -= 1

    async def shutdown_async(self) -> None:
        """Nothing is open."""


class Chunks:
    """Of a text, as a handle gives them."""

    def __init__(self, chunks: AsyncGenerator[GenerationChunk]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> AsyncGenerator[GenerationChunk]:
        return self._chunks

    def cancel(self) -> None:
        """Have the replica stop."""
        self._closing = asyncio.ensure_future(self._chunks.aclose())


@dataclass
class Ways:
    """Gateways to the same replicas, one for each way."""

    replicas: dict[str, ModelReplica] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    apps: dict[str, IngressApp] = field(default_factory=dict)
    transports: list[LinkTransport] = field(default_factory=list)
    key: str = ""
    """Of who may ask all models; nobody needs one."""


@contextmanager
def all_ways(folder: Path, **limits: Any) -> Iterator[Ways]:
    """One replica of each of three models, and gateways to them by all ways."""
    from ray.serve import handle

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(loopback_ray260, "keep_replica_to_node_address", lambda: None)
        patch.setattr(
            "eagleray.serving.garbage.collect_seldom", lambda: None
        )  # it is for their own processes
        patch.setattr("tempfile.gettempdir", lambda: str(folder))
        patch.setattr(handle, "DeploymentHandle", Handle)
        found, targets = Ways(), []
        for name, kind in KINDS.items():
            found.replicas[name] = _replica(folder / name, name, kind)
            stack.callback(found.replicas[name].close, 0)
            digest = "0" * 64
            targets.append(
                Target(name, 1, f"m--{name}--v1", card(kind, name=name), digest, "ready", MAX_QUEUED)
            )
        patch.setattr(Handle, "replicas", {target.app: found.replicas[target.name] for target in targets})
        routes = Routes(1, {target.name: ModelRoute(1, {}, {1: target}) for target in targets})
        keys, _, found.key = KeyRing().create("app", ["infer"])
        state = IngressState(routes=routes, keys=keys, limits=Limits(**limits))
        thread = LoopThread("ways")
        stack.callback(thread.stop)
        for way in WAYS:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            gateway, transport = thread.submit(_open(way, found, state, targets, place)).result(10)
            found.urls[way] = f"http://127.0.0.1:{gateway.port}"
            stack.callback(lambda g=gateway, t=transport: thread.submit(_closed(g, t)).result(10))
        yield found


def _replica(folder: Path, name: str, kind: str) -> ModelReplica:
    made = card(kind, name=name)
    write_package(Folder(folder), made, weights(made))
    spec = ServiceSpec(kind="service", name=name, max_batch_size=8, max_queued_requests=MAX_QUEUED)
    return ModelReplica(arguments_of(spec, str(folder), open_package(folder).digest, LINKS))


async def _open(
    way: str, ways: Ways, state: IngressState, targets: list[Target], folder: Path
) -> tuple[Gateway, Any]:
    serve = ServeTransport()
    transport: Any = serve
    if way != "by Serve":
        [address] = {replica._address["node"] for replica in ways.replicas.values()}
        transport = LinkTransport(serve, node=address, look_up=NoLookup)
        transport.follow(LINKS, [target.app for target in targets])
        for target in targets:
            found = None if "and" in way else ways.replicas[target.name]._address
            transport.update(target.app, [Running(found, MAX_ONGOING)])
            line = transport.line(target.app)
            assert line is not None
            if found is not None:
                await has_link(line.pool)
        ways.transports.append(transport)
    admin = PretendAdmin()
    app = admin.app = ways.apps[way] = IngressApp(state, transport, admin)
    if isinstance(transport, LinkTransport):
        app.gate_of = transport.gate
    connection: Callable[..., Face] = Lane(app, transport).connection if "lane" in way else Face
    gateway = Gateway(
        app, GatewaySettings(), host="127.0.0.1", port=0, directory=folder,
        on_refused=app.refused, connection=connection,
    )  # fmt: skip
    await gateway.open()
    return gateway, transport


async def _closed(gateway: Gateway, transport: Any) -> None:
    await gateway.close(5.0, notice_s=0.0)
    if isinstance(transport, LinkTransport):
        await transport.close()
