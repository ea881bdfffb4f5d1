"""The ledger on real clusters: claims of real drivers, kills, units ended by force, nodes started."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagleray.cluster import event_log, local, processes, settings
from support.drivers import environment

PRELUDE = """
import json, logging, os, signal, sys, time
from dataclasses import replace
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from eagleray.capacity import Request
from eagleray.cluster import event_log, ledger, settings
from eagleray.cluster.arbiter import POLICY
from eagleray.cluster.holding import Holding
from eagleray.cluster.ledger_client import LedgerClient
from eagleray.cluster.names import ASK_GROUP, CLAIM_GROUP, LEDGER, NAMESPACE

ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
CPU = {"CPU": 1.0}

def tell(found):
    print("FOUND", json.dumps(found), flush=True)

def until(condition, limit_s=90):
    deadline_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, client.report()
        time.sleep(0.02)
    return found

def claim(name):
    report = client.report()
    return next((one for one in report["claims"] if one["id"] == name), None) if report else None

def placed(name, node):
    pinned = [{"ray.io/node-id": node}]
    group = placement_group([CPU], name=f"{CLAIM_GROUP}{name}:{node}", bundle_label_selector=pinned)
    assert group.wait(60), placement_group_table(group)
    return group

def run(name, size=1, **more):
    holding = Holding(client, Request.run(name, f"run {name}", CPU, minimum=size, wanted=size, **more))
    found = holding.wait(lambda allotment: allotment.size == size, 120)
    assert found, client.report()
    return holding, list(found.units)
"""


def drive(env: dict[str, str], script: str, *arguments: str, limit_s: float = 200) -> list:
    """The JSON lines that a driver with this script prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\n{script}", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [found for line in done.stdout.splitlines() for found in told(line)]


def told(line: str) -> list:
    """What a driver tells in this line; Ray may say things, too."""
    return [json.loads(line.removeprefix("FOUND"))] if line.startswith("FOUND") else []


KILLED = """
client = LedgerClient.find()
began_s = time.monotonic()
holding, [node] = run("killed", yield_s=1.0)
group = placed("killed", node)
holding.state(used={node: 1})
until(lambda: claim("killed")["used"])
before = client.report()
url = event_log.url_of(settings.storage_url(), before["cluster"])
until(lambda: any((event.claim, event.kind) == ("killed", "grant") for event in event_log.read(url)))
pid = ray.get(ray.get_actor(LEDGER, namespace=NAMESPACE).ping.remote())["pid"]
os.kill(pid, signal.SIGKILL)
killed_s = time.monotonic()
back = until(lambda: claim("killed") and client.report()["is_deciding"] and client.report())
back_s = time.monotonic() - killed_s
same = [(one["held"], one["used"]) for one in back["claims"] if one["id"] == "killed"]
service = Holding(client, Request.service("floor", "service floor", CPU, floor=1, wanted=1,
                                          label_selector={"ray.io/node-id": node}))
notice = until(lambda: holding.allotment if holding.allotment.deadline_s else None)
granted = service.wait(lambda allotment: allotment.size == 1, 30)
state = placement_group_table(group)["state"]
service.close()
holding.close()
tell({
    "epochs": [before["epoch"], back["epoch"]], "same": same, "node": node, "back_s": back_s,
    "notice": [notice.is_suspension, notice.reason], "granted": granted and dict(granted.units),
    "held": dict(holding.allotment.units), "state": state,
    "left": [one for one in client.report()["claims"] if not one["id"].startswith("serve:")],
})
"""


def test_a_killed_ledger_knows_the_claims_again_and_ends_by_force_what_is_not_given_back(
    cluster, cluster_env
):
    (found,) = drive(cluster_env, KILLED)
    node = found["node"]
    assert found["same"] == [[{node: 1}, {node: 1}]]
    assert found["epochs"][0] < found["epochs"][1]
    assert found["notice"] == [True, "needed by service floor (serving floor)"]
    assert (found["granted"], found["held"], found["state"]) == ({node: 1}, {}, "REMOVED")
    assert found["left"] == []
    print(f"the ledger decided again {found['back_s']:.1f} s after it was killed")
    assert found["back_s"] < 60, "a goal of 6 s on a machine that is free"
    url = event_log.url_of(settings.storage_url(), cluster.name)
    assert processes.wait_until(
        lambda: [event.kind for event in event_log.read(url) if event.claim == "floor"][-1:] == ["close"],
        timeout_s=20,
    )
    kinds = [event.kind for event in event_log.read(url) if event.claim == "killed"]
    assert [kind for kind in kinds if kind not in ("wait", "ask_nodes")] == [
        "open", "grant", "open", "suspend", "evict", "return", "close",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def own(eagleray_home: Path, local_spec):
    """A cluster of its own, which has no node yet and a ledger with a short lease."""
    found = local.up("ledger", local_spec.model_copy(update={"idle_timeout_s": 30}))
    drive(
        environment(found),
        'ledger.start(ledger.LedgerSettings("ledger", sys.argv[1], replace(POLICY, lease_s=4.0)))',
        settings.storage_url(),
    )
    yield found
    local.down("ledger")


FROM_NOTHING = """
client = LedgerClient.find()
nodes = [one for one in client.report()["nodes"] if one["total"].get("CPU")]
began_s = time.monotonic()
holding, [first] = run("first")
granted_s = time.monotonic() - began_s
group = placed("first", first)
placed_s = time.monotonic() - began_s
holding.state(used={first: 1})

stock = placement_group([CPU])  # of somebody who knows no ledger: it waits, and a node is started for it
until(lambda: placement_group_table(stock)["state"] == "CREATED")
[taken] = placement_group_table(stock)["bundles_to_node_id"].values()
until(lambda: any(one["id"] == taken and one["other"].get("CPU") == 1.0 for one in client.report()["nodes"]))
second, [elsewhere] = run("second")
asks = [one["state"] for one in placement_group_table().values() if one["name"].startswith(ASK_GROUP)]
second.close()
remove_placement_group(stock)
until(lambda: not any(one["other"].get("CPU") for one in client.report()["nodes"]))
holding.close()
tell({
    "nodes": nodes, "granted_s": granted_s, "placed_s": placed_s, "different": len({first, taken, elsewhere}),
    "asks": asks, "trouble": client.report()["trouble"],
})
"""


@pytest.mark.slow
def test_a_claim_starts_a_node_and_what_has_no_claim_is_subtracted(own):
    (found,) = drive(environment(own), FROM_NOTHING)
    assert found["nodes"] == []
    assert found["different"] == 3, "each has a node of its own"
    assert set(found["asks"]) == {"REMOVED"}
    assert found["trouble"] == ""
    print(
        f"claim to grant, with a node's start: {found['granted_s']:.1f} s, placed {found['placed_s']:.1f} s"
    )
    assert found["placed_s"] < 90, "a goal of 10 s on a machine that is free"


DIES = """
client = LedgerClient.find()
holding, [node] = run("dies")
holding.state(used={node: 1})
until(lambda: claim("dies")["used"])
os.kill(os.getpid(), signal.SIGKILL)
"""
OUTLIVES = """
client = LedgerClient.find()
until(lambda: not claim("dies"))
holding, [node] = run("next")
holding.close()
"""


@pytest.mark.slow
def test_a_holder_that_dies_without_a_word_loses_its_claim(own):
    dies = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\n{DIES}"],
        env=environment(own),
        timeout=200,
        check=False,
    )
    assert dies.returncode == -signal.SIGKILL
    drive(environment(own), OUTLIVES)
    url = event_log.url_of(settings.storage_url(), "ledger")
    assert processes.wait_until(
        lambda: any(event.kind == "expire" and event.claim == "dies" for event in event_log.read(url)),
        timeout_s=20,
    )


WITHOUT_GCS = """
client = LedgerClient.find()
holding, nodes = run("stays", 2)
holding.state(used={node: 1 for node in nodes})
groups = [placed("stays", node) for node in nodes]
until(lambda: len(claim("stays")["used"]) == 2)
version = holding.allotment.version
tell("ready")
seen, began_s = set(), time.monotonic()
while time.monotonic() - began_s < 20:
    report = client.report()
    if report is not None:
        seen.add((bool(report["trouble"]), report["is_deciding"], len(claim("stays")["held"])))
    time.sleep(0.05)
later, _ = run("later")
tell({"seen": sorted(seen), "versions": holding.allotment.version - version})
later.close()
holding.close()
"""


@pytest.mark.slow
def test_claims_outlive_the_gcs(own):
    driver = subprocess.Popen(
        [sys.executable, "-c", f"{PRELUDE}\n{WITHOUT_GCS}"],
        env=environment(own),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        assert next(filter(None, map(told, driver.stdout))) == ["ready"]
        gcs = next(process for process in own.processes() if process.role == "gcs_server")
        processes.send(gcs, signal.SIGSTOP)
        time.sleep(6)  # an answer is waited for 2 s: a GCS that is back before may never be missed
        processes.send(gcs, signal.SIGKILL)
        [found] = next(filter(None, map(told, driver.stdout)))
        assert driver.wait(60) == 0
    finally:
        driver.kill()
        driver.wait()
    assert {held for _, _, held in found["seen"]} == {2}, found
    assert [True, False, 2] in found["seen"], "it was blind"
    assert [True, True, 2] not in found["seen"], "it decides nothing that it cannot see"
    assert found["versions"] == 0


ELSEWHERE = """
client = LedgerClient.find()

class Holder:  # on another node than the ledger, and than the driver, which ends with the head's raylet
    def hold(self, node):
        request = Request.run("survives", "run survives", {"CPU": 1.0}, minimum=1, wanted=1,
                              label_selector={"ray.io/node-id": node})
        self.holding = Holding(LedgerClient(), request)
        assert self.holding.wait(lambda allotment: allotment.size == 1, 60)
        self.group = placement_group([{"CPU": 1.0}], name=f"{CLAIM_GROUP}survives:1", lifetime="detached",
                                     bundle_label_selector=[{"ray.io/node-id": node}])
        assert self.group.wait(60)
        self.holding.state(used={node: 1})

    def said(self):
        return dict(self.holding.allotment.units), placement_group_table(self.group)["state"]

    def end(self):
        self.holding.close()
        remove_placement_group(self.group)

first, [node] = run("first")
first.close()
holder = ray.remote(Holder).options(name="holder", namespace=NAMESPACE, lifetime="detached", num_cpus=0,
                                    label_selector={"ray.io/node-id": node}).remote()
ray.get(holder.hold.remote(node))
until(lambda: claim("survives")["used"])
tell({"node": node, "epoch": client.report()["epoch"]})
"""
AFTERWARDS = """
node, client = sys.argv[1], LedgerClient.find()
back = until(lambda: claim("survives") and client.report()["is_deciding"] and client.report())
holder = ray.get_actor("holder", namespace=NAMESPACE)
pinned = {"ray.io/node-id": node}
wants = Holding(client, Request.search("wants", "search wants", CPU, wanted=1, label_selector=pinned))
waits = until(lambda: (found := claim("wants")) and found["wait"] and found)
tell({
    "epoch": back["epoch"], "survives": claim("survives"), "said": ray.get(holder.said.remote()),
    "wants": [waits["held"], waits["wait"]["reason"]],
})
wants.close()
ray.get(holder.end.remote())
ray.kill(holder)
"""


@pytest.mark.slow
def test_a_ledger_whose_node_was_killed_knows_the_claims_again_and_grants_nothing_twice(own):
    """Of a local cluster's head that is its raylet, with all that runs there; GCS and other nodes stay."""
    (before,) = drive(environment(own), ELSEWHERE)
    node = before["node"]

    def raylet() -> processes.Process:
        return next(process for process in own.processes() if process.role == "raylet")

    killed = raylet()
    processes.send(killed, signal.SIGKILL)
    assert processes.wait_until(lambda: raylet() != killed and local.is_ready(own), timeout_s=120)
    (after,) = drive(environment(own), AFTERWARDS, node)
    assert after["epoch"] > before["epoch"]
    assert (after["survives"]["held"], after["survives"]["used"]) == ({node: 1}, {node: 1})
    assert after["said"] == [{node: 1}, "CREATED"]
    assert after["wants"] == [
        {},
        "what it needs is held by run survives, and may not be taken from there now",
    ]


STOCK = """
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)

client = LedgerClient.find()
holding, [node] = run("ours")
group = placed("ours", node)
holding.state(used={node: 1})
coordinator = get_or_create_autoscaling_coordinator()
ray.get(coordinator.request_resources.remote(
    requester_id="stock", resources=[CPU] * 4, expire_after_s=60.0, priority=ResourceRequestPriority.HIGH))

def reserved(name):
    return ray.get(coordinator.get_reserved_resources.remote(name, True))

until(lambda: node in reserved("eagleray-ledger"))
during = node in reserved("stock")
remove_placement_group(group)
holding.close()
until(lambda: not reserved("eagleray-ledger"))
ray.get(coordinator.cancel_request.remote("stock"))
ray.kill(coordinator)
tell(during)
"""


@pytest.mark.slow
def test_a_stock_run_does_not_count_on_what_is_held(own):
    assert drive(environment(own), STOCK) == [False]


TWO = """
from eagleray.cluster.ledger_actor import LedgerActor

client = LedgerClient.find()
holding, _ = run("claimed")
wanted = ledger.LedgerSettings("ledger", sys.argv[1])
other = ray.remote(LedgerActor).options(
    num_cpus=0, resources={"node:__internal_head__": 0.001}, max_concurrency=100).remote(wanted.to_json())
until(lambda: ray.get(other.report.remote())["epoch"])
holding.state(request=replace(Request.run("claimed", "run claimed", CPU, minimum=1, wanted=1), yield_s=5.0))
extra = Holding(client, Request.search("extra", "search extra", CPU, wanted=1))
report = until(lambda: (found := client.report()) and found["trouble"] and found)
tell([report["is_deciding"], report["trouble"], ray.get(other.report.remote())["is_deciding"],
      dict(holding.allotment.units) != {}])
ray.kill(other)
"""


@pytest.mark.slow
def test_of_two_ledgers_the_older_one_stops(own):
    """The last of this module: its ledger decides nothing any more."""
    ((is_deciding, trouble, does_other, is_held),) = drive(environment(own), TWO, settings.storage_url())
    assert (is_deciding, does_other, is_held) == (False, True, True)
    assert "a newer ledger of this cluster" in trouble
    assert "decides no more" in trouble
