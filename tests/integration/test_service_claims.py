"""A service and a run on two nodes: traffic takes one of them from the run, and lends it again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import settings
from eagleray.registry.models import MlflowModels
from eagleray.workflows.claims import of_cluster
from support import cards
from support.served import NAME, Load, deploy, infer, services, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LENDER = Path(__file__).with_name("lender.py")
LABELS = {"eagleray.io/pool": "cpu"}
"""Two nodes with one CPU each."""
RUN = "lender-of-the-test"
IDLE_S = 3.0


@pytest.fixture
def served(ingress: httpx.Client) -> Iterator[httpx.Client]:
    """A service of one to two replicas, ready."""
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    card = cards.card("image", name=NAME)
    version = store.publish(card, cards.weights(card, 11)).version
    more = {"max_replicas": 2, "idle_s": IDLE_S, "target_ongoing_requests": 0.5, "label_selector": LABELS}
    deploy(ingress, version=version, cpus_per_replica=1, **more)
    until(lambda: infer(ingress).status_code == 200, client=ingress)
    yield ingress
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: not services(ingress))


@pytest.fixture
def holds(cluster_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], int | None]]:
    """What a run-class claim of another process holds, from its beginning to its end."""
    log = tmp_path / "lender.log"
    with log.open("w") as out:
        lender = subprocess.Popen(
            [sys.executable, str(LENDER), RUN, "2", json.dumps(LABELS)],
            env=cluster_env,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def holds() -> int | None:
        assert lender.poll() is None, log.read_text()
        found = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("holds ")]
        return int(found[-1]) if found else None

    yield holds
    assert lender.stdin is not None
    lender.stdin.close()
    try:
        assert lender.wait(60) == 0, log.read_text()
    finally:
        if lender.poll() is None:
            lender.kill()


def claims(client: httpx.Client) -> dict[str, dict]:
    return {claim["id"]: claim for claim in client.get("/admin/claims").json()["claims"]}


def test_traffic_takes_a_node_from_a_run_and_lends_it_again(served, holds):
    [version] = services(served)
    app = f"serve:m--{NAME}--v{version}:CPU=1"
    # The requests that waited for the first replica may have asked for a second.
    until(lambda: claims(served)[app]["classes"] == {"serving floor": 1})
    assert sum(claims(served)[app]["used"].values()) == 1
    print(f"the run has the other node after {until(lambda: holds() == 1):.1f} s")
    assert claims(served)[RUN]["classes"] == {"training share": 1}

    def num_replicas() -> int:
        return services(served)[version]["replicas"]

    loads = [Load(str(served.base_url)) for _ in range(2)]
    began_s = time.monotonic()
    for load in loads:
        load.__enter__()
    try:
        until(lambda: holds() == 0, client=served)
        given_s = time.monotonic() - began_s
        until(lambda: num_replicas() == 2, client=served)
        print(
            f"load: given back after {given_s:.1f} s, two replicas after {time.monotonic() - began_s:.1f} s"
        )
        until(lambda: sum(claims(served)[app]["used"].values()) == 2)
        burst = claims(served)[app]
        assert burst["classes"] == {"serving floor": 1, "serving burst": 1}
        assert burst["used"] == burst["held"], "where they were granted"
        answered = sum(load.answers.total() for load in loads)
        until(lambda: sum(load.answers.total() for load in loads) > answered + 20)
    finally:
        for load in loads:
            load.__exit__()
    ended_s = time.monotonic()
    until(lambda: num_replicas() == 1, client=served)
    assert time.monotonic() - ended_s >= IDLE_S - 1, "a replica more than needed stays for a while"
    until(lambda: holds() == 1)
    print(f"the run has its node again {time.monotonic() - ended_s:.1f} s after the load ended")
    assert [load.failed for load in loads] == [[], []]
    assert served.post("/admin/undeploy", json={"name": NAME}).status_code == 200
    until(lambda: app not in claims(served))
    until(lambda: holds() == 2)


def test_a_cluster_is_asked_without_its_ingress_too(cluster):
    found = of_cluster(cluster)
    assert found.trouble == ""
    assert "head" in [node.name for node in found.nodes]
