"""Requests past Serve on a real cluster: over links, to another replica, by Serve's handles; none is lost."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import processes, settings, state
from eagleray.registry.models import MlflowModels
from support import cards, listening
from support.served import NAME, SHARE, Load, deploy, infer, services, until

pytestmark = pytest.mark.timeout(240)
_CONNECTED = "03"


@pytest.fixture(scope="module")
def served(ingress: httpx.Client):
    """Version 1 in two replicas, and a second version beside it in the registry."""
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    card = cards.card("image", name=NAME)
    versions = [store.publish(card, cards.weights(card, seed)).version for seed in (11, 12)]
    deploy(ingress, version=versions[0], min_replicas=2, max_replicas=2)
    until(lambda: infer(ingress).status_code == 200, client=ingress)
    yield ingress, versions
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: not services(ingress))


def linked() -> int:
    """Connections to link servers on this machine."""
    lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()
    return sum(
        bool(re.search(r"/eagleray-link-\d+/[0-9a-f]+\.new$", line)) and line.split()[5] == _CONNECTED
        for line in lines
    )


def replicas(cluster: state.ClusterState) -> list[processes.Process]:
    return [
        process
        for process in processes.belonging(cluster.marker)
        if f"ray::ServeReplica:m--{NAME}--v"
        in Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
    ]


def kill(found: list[processes.Process]) -> None:
    for process in found:
        processes.send(process, processes.signal.SIGKILL)
    until(lambda: not any(process.is_alive for process in found))


def test_kills_and_a_new_version_cost_no_request(cluster, served):
    client, (first, second) = served
    began = time.monotonic()
    until(lambda: linked() == 2 == len(replicas(cluster)))
    print(f"both replicas are linked: {time.monotonic() - began:.1f} s")
    listeners = listening.compared(cluster)
    assert "replica" in listeners.seen
    assert (listeners.without_row, listeners.beyond) == ([], []), "see docs/security.md"
    with Load(str(client.base_url)) as load:
        until(lambda: load.answers[str(first)] > 20)
        kill(replicas(cluster)[:1])
        answered = load.answers.total()
        until(lambda: load.answers.total() > answered + 20)
        assert load.failed == [], "the other one had what the killed one had begun"

        seconds = until(lambda: linked() == 2, client=client)
        print(f"a killed replica is replaced and linked: {seconds:.1f} s")
        deploy(client, version=second, cpus_per_replica=SHARE)
        until(lambda: load.answers[str(second)] > 20, client=client)
        until(lambda: list(services(client)) == [second], client=client)
        until(lambda: linked() == 1 == len(replicas(cluster)), client=client)
        assert load.failed == [], "the old version has answered what it had"

        kill(replicas(cluster))
        answered = load.answers.total()
        seconds = until(lambda: load.answers.total() > answered + 20, client=client)
        print(f"the only replica is replaced: {seconds:.1f} s")
        until(lambda: linked() == 1)
    assert load.failed == [], "they waited in the gateway until there was another replica"
