"""An objective under load: replicas say what a forward pass takes, and Serve's log says why more come."""

from __future__ import annotations

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


def test_replicas_come_for_an_objective_and_the_log_says_why(
    cluster: state.ClusterState, ingress: httpx.Client, tmp_path: Path
):
    (tmp_path / "slow_net.py").write_text(SLOW_NET)
    card = cards.card("image", name=NAME, architecture=Architecture(function="slow_net:build"))
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    version = store.publish(card, {}, Folder(str(tmp_path))).version
    deploy(ingress, version=version, allow_code=True, max_replicas=3, objective_p95_ms=100)
    until(lambda: infer(ingress).status_code == 200, client=ingress)
    with ExitStack() as loads:
        for _ in range(4):
            loads.enter_context(Load(str(ingress.base_url)))
        seconds = until(lambda: services(ingress)[version]["replicas"] == 3, client=ingress)
    print(f"3 replicas after {seconds:.1f} s")
    logs = [path.read_text() for path in cluster.runtime_dir.rglob("logs/serve/controller_*.log")]
    lines = [line for log in logs for line in log.splitlines() if f"{NAME}--v{version}: wants" in line]
    print(*lines, sep="\n")
    assert any("samples/s come, and a replica takes" in line or "samples wait" in line for line in lines)
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: not services(ingress), client=ingress)
