"""A small image model behind a real ingress: asked, deployed, and loaded with requests."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from eagleray.cluster import local, processes, settings, state
from eagleray.registry.models import MlflowModels

NAME = "served-digits"
IMAGE = [float(number % 17) for number in range(64)]
DEPLOY_S = 180.0
"""Much more than the goal (docs/figures.md): the machine may be busy. Tests print what it took."""
SHARE = 0.3
"""CPUs of a replica: three share a node, so that the tests wait for one only."""


@contextmanager
def opened(cluster: state.ClusterState, limit_s: float = 300.0) -> Iterator[httpx.Client]:
    """The cluster's ingress, with the first admin key, as soon as it answers: `up` does not wait for it."""
    assert processes.wait_until(lambda: local.is_ingress_ready(cluster), timeout_s=limit_s), (
        f"no answer in {limit_s} s: {(cluster.logs_dir / 'serving.log').read_text()}"
    )
    key = cluster.admin_key_path.read_text()
    with httpx.Client(
        base_url=cluster.ingress_url or "",
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
        trust_env=False,
    ) as client:
        yield client


def infer(
    client: httpx.Client,
    path: str = NAME,
    count: int = 1,
    image: list[float] | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    data = (IMAGE if image is None else image) * count
    tensor = {"name": "image", "datatype": "FP32", "shape": [count, 1, 8, 8], "data": data}
    return client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor]}, headers=headers)


def is_answered(client: httpx.Client) -> bool:
    """Whether the model answers; not where the gateway has just been lost."""
    try:
        return infer(client).status_code == 200
    except httpx.TransportError:
        return False


def deploy(client: httpx.Client, **spec) -> dict:
    answer = client.post("/admin/deploy", json={"name": NAME, "cpus_per_replica": SHARE, **spec})
    assert answer.status_code == 202, answer.text
    return answer.json()


def services(client: httpx.Client) -> dict[int, dict]:
    found = client.get("/admin/services").json()["services"]
    return {service["version"]: service for service in found if service["name"] == NAME}


def until(
    condition: Callable[[], object], limit_s: float = DEPLOY_S, client: httpx.Client | None = None
) -> float:
    """Seconds until `condition` came true."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, services(client) if client else "no end"
        time.sleep(0.05)
    return time.monotonic() - began


LOAD = """
import sys
from ray import serve
import torch
from eagleray.inference import Predictor
from eagleray.packaging import open_package
Predictor(open_package(sys.argv[1])).warm_up(1)
"""


def start_and_load_s(version: int) -> float:
    """Seconds until a process by itself could answer for that version: what no replica can save."""
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    url = store.resolve(f"{NAME}/versions/{version}").url
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", LOAD, url], check=True, timeout=150)
    return time.monotonic() - began


@dataclass
class Load:
    """Requests from two threads until `stop`."""

    url: str
    answers: Counter = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    is_over: bool = False

    def __enter__(self):
        self.threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over = True
        for thread in self.threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            while not self.is_over:
                try:
                    answer = infer(client)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    self.answers[answer.json()["model_version"]] += 1
                else:
                    self.failed.append(answer.text)
                time.sleep(0.02)
