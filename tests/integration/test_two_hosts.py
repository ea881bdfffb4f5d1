"""A plain Ray cluster (`ray start`) over two hosts, and training on it by `ray job submit`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eagleray.cluster import processes
from support import hosts
from support.ray_hosts import DASHBOARD, GCS, RayHosts
from support.served import NAME

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]


@dataclass
class Log:
    """What a command printed."""

    exit_code: int = -1
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def step(self) -> int:
        steps = re.findall(r"^step (\d+)/", self.text, re.MULTILINE)
        return int(steps[-1]) if steps else 0

    @property
    def pids(self) -> dict[str, int]:
        """By node, of the latest attempt."""
        return {node: int(pid) for node, pid in re.findall(r"rank \d+: node (\S+), pid (\d+)", self.text)}

    def lines_from(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]


class Cluster(RayHosts):
    """Where commands run on the head, and their log is followed."""

    def follow(
        self, *argv: str, watch: Callable[[Log], None] = lambda _: None, address: str | None = None
    ) -> Log:
        """Run a command on the head to its end; `watch` looks at the log after each line."""
        log = Log()
        running = subprocess.Popen(
            self.head.command(*argv),
            cwd=ROOT,
            env={
                **self.env(self.head),
                "RAY_ADDRESS": address or f"http://{self.head.address}:{DASHBOARD}",
                "PYTHONUNBUFFERED": "1",  # `ray job submit` into a pipe would keep its lines for seconds
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert running.stdout is not None
            for line in running.stdout:
                log.lines.append(line.rstrip())
                watch(log)
            log.exit_code = running.wait(10)
        finally:
            running.kill()
            running.wait(10)
        return log

    def train(self, *overrides: str, watch: Callable[[Log], None] = lambda _: None) -> Log:
        sets = [word for override in overrides for word in ("--set", override)]
        submit = (
            "ray",
            "job",
            "submit",
            "--runtime-env",
            "runtime_env.yaml",
            "--",
            "python",
            "jobs/train.py",
        )
        return self.follow(*submit, "examples/train/digits.toml", *sets, watch=watch)

    def report(self, log: Log) -> dict:
        (line,) = [line for line in log.lines if re.match(r"run \S+-\d{8}-\d{6}-\w+$", line)]
        return json.loads((self.shared / "storage/runs" / line.split()[1] / "report.json").read_text())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with hosts.hosts(2) as (head, other):
        found = Cluster(head, other)
        found.start()
        yield found


def test_a_job_trains_on_both_hosts(cluster: Cluster) -> None:
    listening: dict[str, set[str]] = {}

    def look(log: Log) -> None:
        if log.step >= 100 and not listening:
            for host in (cluster.head, cluster.other):
                found = host.listening(log.pids[host.address])
                listening[host.address] = {address for address, _ in found}

    log = cluster.train("training.epochs=30", watch=look)
    assert log.exit_code == 0, log.text
    assert set(log.pids) == {cluster.head.address, cluster.other.address}
    assert "2 workers on 2 nodes" in log.lines_from("step 690/690")[-1]
    # Ray's own port is on all interfaces and wants the token; those of gloo and the store are not.
    assert listening == {address: {"::", address} for address in log.pids}
    found = cluster.report(log)
    assert found["metrics"]["test_accuracy"] >= 0.97
    assert found["compression_ratio"] == pytest.approx(2.0, rel=0.03), "but for headers and biases"
    print(f"{found['samples'] / found['step_seconds']:.0f} samples/s, {found['seconds']:.1f} s")
    assert "Traceback" not in log.text


def test_a_run_outlives_a_worker_on_the_other_host_and_then_that_host(cluster: Cluster) -> None:
    done: list[str] = []

    def harm(log: Log) -> None:
        if log.step >= 200 and not done:
            os.kill(log.pids[cluster.other.address], signal.SIGKILL)
            done.append("worker killed")
        elif log.step >= 450 and done == ["worker killed"] and log.lines_from("training again"):
            cluster.other.kill_all()
            done.append("host killed")
        elif done == ["worker killed", "host killed"] and log.lines_from("waiting for 2 x (1 CPU + 1 GPU)"):
            cluster.start_other()
            done.append("host started")

    log = cluster.train("training.epochs=80", watch=harm)
    assert log.exit_code == 0, log.text
    assert done == ["worker killed", "host killed", "host started"], log.text
    found = cluster.report(log)
    assert found["status"] == "FINISHED"
    assert found["metrics"]["test_accuracy"] >= 0.97
    first, second = found["recoveries"]
    print([f"{one['pause_s']:.1f} s, {one['redone_steps']} steps" for one in (first, second)])
    assert "its process ended" in first["reason"]
    assert "2 workers on 2 nodes" in log.lines_from("step 1840/1840")[-1]
    assert "Traceback" not in log.text


def test_what_the_machines_can_never_hold_is_refused_with_the_way_out(cluster: Cluster) -> None:
    driver = (sys.executable, "-m", "eagleray.workflows.train", "examples/train/digits.toml")
    log = cluster.follow(*driver, "--set", "scaling.num_workers=3", address=f"{cluster.head.address}:{GCS}")
    assert log.exit_code == 3, log.text
    assert log.lines_from("error: ") == [
        "error: wants 3 workers with 1 GPU each with label eagleray.io/pool=train; the cluster's machines "
        "hold at most 2 (each also needs 1 CPU): 2 machines with 1 GPU, 2 CPU; ask for less or for no label, "
        "or add machines: ray start --address=HEAD:PORT --labels=eagleray.io/pool=train"
    ]


ATTACH = ("eagleray", "attach", f"{{head}}:{GCS}", "--name", "far", "--port", "8100")
MLFLOW = 8101
CLIENT = """
import json
import httpx
from eagleray.cluster import attached, settings
from eagleray.registry.models import MlflowModels
from support import cards
from support.failing import ways
from support.served import NAME, deploy, infer, services, until

cluster = attached.read("far")
key = {"Authorization": f"Bearer {cluster.admin_key_path.read_text()}"}
client = httpx.Client(base_url=cluster.ingress_url, headers=key, timeout=60)
"""
DEPLOYED = """
card = cards.card("image", name=NAME)
store = MlflowModels(settings.tracking_uri(), settings.storage_url())
version = store.publish(card, cards.weights(card)).version
# As large as a host, so that each of the two gets one.
deploy(client, version=version, min_replicas=2, max_replicas=2, cpus_per_replica=2)
until(lambda: services(client)[version]["state"] == "ready", 120, client)
until(lambda: services(client)[version]["replicas"] == 2, 120, client)
"""
ASKED = """
before = ways(client)
codes = [infer(client).status_code for _ in range(40)]
after = ways(client)
print(json.dumps([codes, {way: after[way] - before[way] for way in after}]))
"""


def test_attach_says_what_is_missing_beyond_one_host(cluster: Cluster) -> None:
    attach = [part.format(head=cluster.head.address) for part in ATTACH]
    log = cluster.follow(*attach)
    assert log.exit_code == 1, log.text
    assert "is a file of one machine, and the cluster has 2; run `mlflow server`" in log.lines[-1]


@pytest.fixture(scope="module")
def tracked(cluster: Cluster) -> Iterator[Callable[[hosts.Host], dict[str, str]]]:
    """A host's environment with an MLflow server that both reach."""
    server = f"http://{cluster.head.address}:{MLFLOW}"
    command = ("mlflow", "server", "--host", cluster.head.address, "--port", str(MLFLOW), "--workers", "1")
    store = ("--backend-store-uri", f"sqlite:///{cluster.shared}/server.db")
    allowed = ("--allowed-hosts", f"{cluster.head.address}:{MLFLOW}")

    def environment(host: hosts.Host) -> dict[str, str]:
        return {**cluster.env(host), "EAGLERAY_TRACKING_URI": server, "PYTHONPATH": f"{ROOT}/tests"}

    mlflow = subprocess.Popen(
        cluster.head.command(*command, *store, *allowed),
        env=environment(cluster.head),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert processes.wait_until(
            lambda: (cluster.head.address, MLFLOW) in cluster.head.listening(), timeout_s=90, interval_s=0.5
        )
        yield environment
    finally:
        mlflow.kill()
        mlflow.wait()


def running(host: hosts.Host, title: str) -> list[processes.Process]:
    return [
        process
        for process in host.processes()
        if title in Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
    ]


def test_attach_from_the_second_host_serves_from_both(cluster: Cluster, tracked) -> None:
    head, other = cluster.head, cluster.other
    attach = (*(part.format(head=head.address) for part in ATTACH), "--host", head.address, "--insecure")
    printed = other.run(*attach, env=tracked(other), timeout_s=180)
    assert f"models are served at http://{head.address}:8100" in printed
    assert "warning" not in printed
    before = {host.hostname: host.listening() for host in (head, other)}
    other.run(sys.executable, "-c", CLIENT + DEPLOYED, env=tracked(other), timeout_s=240)
    # The gateway is on the head: to the other host's replica it has a link by TCP, and draws one of both.
    (replica,) = running(other, f"ray::ServeReplica:m--{NAME}")
    own = {port for address, port in other.listening(replica.pid) if address.endswith(other.address)}
    assert processes.wait_until(
        lambda: any(head.address in other.peers(replica.pid, port) for port in own), timeout_s=60
    ), own
    answers = other.run(sys.executable, "-c", CLIENT + ASKED, env=tracked(other), timeout_s=240)
    assert json.loads(answers.splitlines()[-1]) == [[200] * 40, {"link": 40, "serve": 0}]
    # Each host has a replica now: its own port is on the host's address, Ray's on all, behind the token.
    for host in (head, other):
        found = host.listening() - before[host.hostname]
        new = {address.removeprefix("::ffff:") for address, _ in found}
        loopback = {"127.0.0.1"} if host is head else set()  # Serve's proxy, if it was not up before
        assert new <= {host.address, "::", "0.0.0.0"} | loopback
        assert host.address in new, (host.hostname, new)
    # The controller writes where it runs; who attached has a key and no more.
    record = head.folder / "home/serving/far/record.json"
    assert record.exists()
    assert not (other.folder / "home/serving").exists()
    keys = [host.folder / "home/attached/far/admin.key" for host in (other, head)]
    assert keys[0].stat().st_mode & 0o777 == 0o600

    def served(host: hosts.Host) -> dict[str, Any]:
        text = host.run("eagleray", "status", "--name", "far", "--json", env=tracked(host))
        return json.loads(text[text.index("{") :])

    def is_back() -> bool:
        try:
            found = served(other)
        except AssertionError:
            return False
        return not found["ingress"]["trouble"] and [one["state"] for one in found["services"]] == ["ready"]

    (controller,) = running(head, "ray::ControllerActor")
    processes.send(controller, signal.SIGKILL)
    assert processes.wait_until(is_back, timeout_s=60, interval_s=1)
    # Attached from the head too, it is the same: what is served, and the key of the other machine.
    head.run(*attach, env=tracked(head), timeout_s=180)
    assert served(head)["services"] == served(other)["services"]
    assert keys[0].read_text() != keys[1].read_text()
    ended = other.run("eagleray", "down", "--name", "far", env=tracked(other), timeout_s=120)
    assert "is as it was before" in ended
    assert 8100 not in {port for _, port in head.listening()}
    assert not record.parent.exists()
    assert not keys[0].parent.exists()
    head.run("eagleray", "down", "--name", "far", env=tracked(head))  # forgets it there too
    assert not keys[1].parent.exists()


def test_attach_from_the_second_host_says_that_the_heads_loopback_is_not_its_own(
    cluster: Cluster, tracked
) -> None:
    attach = [part.format(head=cluster.head.address) for part in ATTACH]
    printed = cluster.other.run(*attach, env=tracked(cluster.other), timeout_s=180)
    assert f"warning: that is 127.0.0.1 of the head, {cluster.head.address}, and this is another" in printed
    assert f"`ssh -N -L 8100:127.0.0.1:8100 {cluster.head.address}`" in printed
    assert ("127.0.0.1", 8100) in cluster.head.listening()
    cluster.other.run("eagleray", "down", "--name", "far", env=tracked(cluster.other), timeout_s=120)
    assert 8100 not in {port for _, port in cluster.head.listening()}
