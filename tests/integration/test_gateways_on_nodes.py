"""Gateways on nodes of one type in place of the head, which the cluster's autoscaler starts for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import local, nodes, processes, settings, state
from eagleray.registry.models import MlflowModels
from eagleray.specs import LocalSpec
from eagleray.workflows.up import SERVING
from support import cards, listening
from support.failing import are_settled, gateways, replicas, ways
from support.served import NAME, Load, deploy, infer, is_answered, opened, services, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NUMBER = 2
LABELS = {"eagleray.io/pool": "cpu"}
ELSEWHERE = {"eagleray.io/pool": "serve"}


@pytest.fixture(scope="module")
def apart(eagleray_home: Path, local_spec: LocalSpec) -> Iterator[state.ClusterState]:
    """A cluster with its gateways on nodes of the type cpu_worker; at first it has a head and no node."""
    serving = local_spec.serving.model_copy(update={"gateways": NUMBER, "gateway_labels": LABELS})
    found = local.up("apart", local_spec.model_copy(update={"serving": serving}), helpers=SERVING)
    yield found
    local.down("apart")


@pytest.fixture(scope="module")
def served(apart: state.ClusterState) -> Iterator[httpx.Client]:
    """A small model on a node of another type."""
    began_s = time.monotonic()
    with opened(apart) as client:
        print(f"a node for gateways, and an answer from there: {time.monotonic() - began_s:.1f} s")
        until(lambda: are_settled(client, NUMBER))
        store = MlflowModels(settings.tracking_uri(), settings.storage_url())
        card = cards.card("image", name=NAME)
        version = store.publish(card, cards.weights(card, 31)).version
        deploy(client, version=version, label_selector=ELSEWHERE)
        until(lambda: is_answered(client))
        yield client


def node_of(cluster: state.ClusterState, process: processes.Process) -> nodes.Node | None:
    """The node that a process belongs to; None: it is the head's, or has ended."""
    leaders = {node.process.pid: node for node in nodes.read_all(cluster.nodes_dir) if node.process}
    pid = process.pid
    while pid > 1 and pid not in leaders:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return None
    return leaders.get(pid)


def nodes_of(cluster: state.ClusterState, found: list[processes.Process]) -> list[nodes.Node]:
    """The node of each. Raises: AssertionError for one of the head's."""
    ours = [node_of(cluster, process) for process in found]
    assert None not in ours, f"on the head: {found}"
    return [node for node in ours if node]


def test_they_run_where_the_labels_say_and_answer_over_links(
    apart: state.ClusterState, served: httpx.Client
) -> None:
    assert [node.node_type for node in nodes_of(apart, gateways(apart))] == ["cpu_worker"] * NUMBER
    assert [node.node_type for node in nodes_of(apart, replicas(apart))] == ["serve_gpu"]
    before = counted(served)
    for _ in range(20):  # to both of them: each connection is the kernel's to give
        with httpx.Client(base_url=served.base_url, trust_env=False, timeout=60) as other:
            assert infer(other).status_code == 200
    large = infer(served, count=5000)
    assert (large.status_code, large.json()["outputs"][1]["shape"]) == (200, [5000])
    assert counted(served) - before == {"link": 21}
    listeners = listening.compared(apart)
    assert {"gateway", "replica"} <= listeners.seen
    assert (listeners.without_row, listeners.beyond) == ([], []), "see docs/security.md"


def counted(client: httpx.Client) -> Counter[str]:
    """Requests by way, when all gateways have told: what one counted that is not asked is a second old."""
    found, since_s = ways(client), time.monotonic()

    def is_all() -> bool:
        nonlocal found, since_s
        if (now := ways(client)) != found:
            found, since_s = now, time.monotonic()
        return time.monotonic() - since_s > 2

    until(is_all, 30)
    return found


def test_their_node_stays_though_it_has_nothing_else_to_do(
    apart: state.ClusterState, served: httpx.Client, local_spec: LocalSpec
) -> None:
    before = gateways(apart)
    with Load(str(served.base_url)) as load:
        until_s = time.monotonic() + local_spec.idle_timeout_s + 15
        until(lambda: time.monotonic() > until_s)
    assert load.failed == []
    assert set(gateways(apart)) == set(before)
    assert len(before) == NUMBER


def test_where_their_node_is_lost_they_come_up_on_another(
    apart: state.ClusterState, served: httpx.Client
) -> None:
    before = gateways(apart)
    lost = {node.node_id: node for node in nodes_of(apart, before)}
    for node in lost.values():
        assert node.process is not None
        processes.send(node.process, processes.signal.SIGKILL)
    until(lambda: not any(one.is_alive for one in before))

    def are_back() -> bool:
        found = gateways(apart)
        return len(found) == NUMBER and not set(found) & set(before) and are_settled(served, NUMBER)

    print(f"gateways on another node: {until(are_back):.1f} s")
    found = nodes_of(apart, gateways(apart))
    assert [node.node_type for node in found] == ["cpu_worker"] * NUMBER
    assert not {node.node_id for node in found} & lost.keys()
    assert list(services(served)), "what was deployed is remembered"
    with Load(str(served.base_url)) as load:
        until(lambda: load.answers.total() > 50)
    assert load.failed == []
