"""A model that is asked through the SDK while its replicas and gateways come and go; nothing may be lost."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from eagleray.client import AsyncClient
from eagleray.cluster import processes, state
from support.served import NAME, deploy, services, until

PARALLEL, PAUSE_S = 8, 0.02
ENDS_S = 5.0
"""A process that ends has no title any more, and is there for a moment still."""
_CONNECTED = "03"


@dataclass
class Asking:
    """Predictions through the SDK, eight at a time, until the block is left."""

    url: str
    key: str
    model: str
    inputs: Mapping[str, Any]
    answered_s: list[float] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    """Answers by the version that gave them."""
    failed: list[str] = field(default_factory=list)
    is_over: bool = False

    def __enter__(self) -> Asking:
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self.thread.join(60)

    def goes_on(self, limit_s: float = 20) -> None:
        """Return when 50 more are answered."""
        enough = len(self.answered_s) + 50
        until(lambda: len(self.answered_s) > enough or not self.thread.is_alive(), limit_s)
        assert self.thread.is_alive(), "nothing asks any more"

    async def _run(self) -> None:
        async with AsyncClient(self.url, self.key) as client:
            await asyncio.gather(*(self._ask(client) for _ in range(PARALLEL)))

    async def _ask(self, client: AsyncClient) -> None:
        while not self.is_over:
            try:
                found = await client.predict(self.model, self.inputs)
                self.answered_s.append(time.monotonic())
                self.versions[found.version] += 1
            except Exception as error:
                self.failed.append(repr(error))
            await asyncio.sleep(PAUSE_S)


def titled(cluster: state.ClusterState, title: str) -> list[processes.Process]:
    """The cluster's processes whose command has this in it."""
    return [
        process
        for process in processes.belonging(cluster.marker)
        if title in _read(f"/proc/{process.pid}/cmdline")
    ]


def gateways(cluster: state.ClusterState) -> list[processes.Process]:
    """Its gateways."""
    return titled(cluster, "ray::ServeReplica:ingress")


def replicas(cluster: state.ClusterState) -> list[processes.Process]:
    """Those of the model `NAME`, in every version."""
    return titled(cluster, f"ray::ServeReplica:m--{NAME}--v")


def linked(found: Iterable[processes.Process]) -> int:
    """Of these processes, those that a gateway has a link to."""
    lines = [line.split() for line in _read("/proc/net/unix").splitlines()]
    links = {
        f"socket:[{line[6]}]"
        for line in lines
        if line[5] == _CONNECTED and len(line) > 7 and "/eagleray-link-" in line[7]
    }
    return sum(bool(links & _sockets(process)) for process in found)


def _sockets(process: processes.Process) -> set[str]:
    folder, names = f"/proc/{process.pid}/fd", set[str]()
    try:
        for number in os.listdir(folder):
            names.add(os.readlink(f"{folder}/{number}"))
    except OSError:  # it has ended, or closed this one since
        pass
    return names


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def kill(found: Iterable[processes.Process]) -> None:
    """End them by SIGKILL."""
    for process in found:
        processes.send(process, processes.signal.SIGKILL)
    until(lambda: not any(process.is_alive for process in found))


def ways(client: httpx.Client, model: str = NAME) -> Counter[str]:
    """Requests to the model that went over links, and by Serve's handles, as the gateways count them."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "eagleray_ingress_way_total" and sample.labels["model"] == model:
                found[sample.labels["way"]] += int(sample.value)
    return found


def are_settled(client: httpx.Client, number: int) -> bool:
    """Whether there are so many gateways, as they are to be."""
    try:
        found = client.get("/admin/gateways").json()
    except httpx.TransportError:  # on a connection to one that ends
        return False
    return found["is_settled"] and found["running"] == found["number"] == number


@dataclass
class Service:
    """Two versions of the model `NAME`, of which one runs, and what may happen to it.

    Each returns when it is over, and fails if it has not happened.
    """

    cluster: state.ClusterState
    client: httpx.Client
    versions: tuple[int, int]
    running: int = 0
    """The version that runs."""

    def run(self, version: int, number: int) -> None:
        """Have so many replicas of this version, with links, and of no other."""
        self.running = version
        deploy(self.client, version=version, min_replicas=number, max_replicas=number)
        self.wait_for(number)

    def wait_for(self, number: int) -> None:
        """Until so many replicas have links, and there are no others."""
        until(lambda: self._is_so(number), client=self.client)

    def _is_so(self, number: int) -> bool:
        found = replicas(self.cluster)
        if not len(found) == linked(found) == number:
            return False
        told = services(self.client)
        return list(told) == [self.running] and told[self.running]["replicas"] == number

    def scale_down(self) -> None:
        """One of two replicas ends; the other one stays."""
        before = replicas(self.cluster)
        assert len(before) == 2
        self.run(self.running, 1)
        [left] = replicas(self.cluster)
        assert left in before

    def replace(self) -> None:
        """The other version takes over, in two replicas."""
        before = replicas(self.cluster)
        [version] = set(self.versions) - {self.running}
        self.run(version, 2)
        until(lambda: not any(process.is_alive for process in before), ENDS_S)

    def kill_one(self) -> None:
        """One of two replicas is killed; whether there is another one yet is not waited for."""
        found = replicas(self.cluster)
        assert len(found) == 2
        kill(found[:1])
        assert found[1].is_alive

    def drain(self) -> None:
        """All gateways end, and others take their place."""
        before = gateways(self.cluster)
        number = len(before)
        assert self.client.post("/admin/gateways/restart").status_code == 202
        until(lambda: are_settled(self.client, number) and not set(before) & set(gateways(self.cluster)), 90)
        until(lambda: not any(process.is_alive for process in before), ENDS_S)
        assert len(gateways(self.cluster)) == number
