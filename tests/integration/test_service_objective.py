"""An objective under load, and none: Serve's log says why replicas come, and requests wait for the first."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import settings, state
from eagleray.packaging import Folder
from eagleray.registry.models import MlflowModels
from eagleray.specs import Architecture
from support import cards
from support.served import NAME, Load, deploy, infer, services, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SLOW_NET = """
import time
from torch.nn import AvgPool1d, Module
class Net(Module):
    def __init__(self):
        super().__init__()
        self.pool = AvgPool1d(21, 21)
    def forward(self, images):
        time.sleep(0.06)
        return self.pool(images.flatten(1))
def build(signature):
    return Net()
"""


def published(folder: Path) -> tuple[int, Path]:
    """A version whose passes take 60 ms, and the folder of its package."""
    (folder / "slow_net.py").write_text(SLOW_NET)
    card = cards.card("image", name=NAME, architecture=Architecture(function="slow_net:build"))
    found = MlflowModels(settings.tracking_uri(), settings.storage_url()).publish(
        card, {}, Folder(str(folder))
    )
    return found.version, Path(found.url.removeprefix("file://"))


def test_replicas_come_for_an_objective_and_the_log_says_why(
    cluster: state.ClusterState, ingress: httpx.Client, tmp_path: Path
):
    version, package = published(tmp_path)
    deploy(ingress, version=version, allow_code=True, max_replicas=3, objective_p95_ms=100)
    until(lambda: infer(ingress).status_code == 200, client=ingress)
    with ExitStack() as loads:
        for _ in range(4):
            loads.enter_context(Load(str(ingress.base_url)))
        seconds = until(lambda: services(ingress)[version]["replicas"] == 3, client=ingress)
        scaling = services(ingress)[version]["scaling"]
    print(f"3 replicas after {seconds:.1f} s: {scaling}")
    assert scaling["wanted"] == 3
    assert scaling["reason"]
    logs = [path.read_text() for path in cluster.runtime_dir.rglob("logs/serve/controller_*.log")]
    lines = [line for log in logs for line in log.splitlines() if f"{NAME}--v{version}: wants" in line]
    print(*lines, sep="\n")
    assert any("samples/s come, and a replica takes" in line or "samples wait" in line for line in lines)
    deploy(ingress, version=version, allow_code=True, min_replicas=0, idle_s=1, max_queued_requests=4)
    until(lambda: services(ingress)[version]["replicas"] == 0, client=ingress)
    requests_wait_for_a_first_replica(cluster, ingress, version)
    until(lambda: services(ingress)[version]["replicas"] == 0, client=ingress)
    (package / "code" / "slow_net.py").rename(tmp_path / "gone.py")
    answer = infer(ingress)
    print(answer.elapsed.total_seconds(), answer.text)
    assert answer.status_code == 503
    assert "has no replica: " in answer.json()["error"]
    assert "slow_net.py" in answer.json()["error"]
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: not services(ingress), client=ingress)


def requests_wait_for_a_first_replica(
    cluster: state.ClusterState, ingress: httpx.Client, version: int
) -> None:
    """Over links as soon as there is one; who finds no room is told when."""

    def ask(_: object) -> httpx.Response:
        with httpx.Client(base_url=ingress.base_url, timeout=60, trust_env=False) as client:
            return infer(client)

    began_s = time.time()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    decided_s = services(ingress)[version]["scaling"]["at"] - began_s
    print(f"decided after {decided_s:.2f} s, the last answer after {time.time() - began_s:.1f} s")
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 2, [answer.text for answer in answers]
    for answer in refused:
        assert answer.status_code == 503
        assert "has no replica yet, and 4 requests wait for it" in answer.json()["error"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    logs = [path.read_text() for path in cluster.runtime_dir.rglob("logs/serve/replica_ingress*.log")]
    assert logs
    assert not any(f"{NAME}--v{version} go by Serve's handles" in log for log in logs)
