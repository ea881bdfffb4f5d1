"""A run of which a host is cut off: the rest goes on, nothing stale counts, and the host comes back to it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.cluster import processes
from eagleray.workflows.verify import verify
from support import hosts
from support.drivers import DIGITS, DRIVER, ROOT, Log, follow
from support.ray_hosts import GCS, RayHosts

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


class Cluster(RayHosts):
    """With a guard on the other host, and the driver on the head."""

    def env(self, host: hosts.Host) -> dict[str, str]:
        address = {"RAY_ADDRESS": f"{self.head.address}:{GCS}"}
        return {**super().env(host), **address, "PYTHONPATH": str(ROOT / "platform")}

    def start_other(self) -> None:
        super().start_other(sys.executable, "-m", "eagleray.cluster.guard", "start", "--")


@pytest.fixture(params=["default", "fast"])
def cluster(request) -> Iterator[Cluster]:
    with hosts.hosts(2) as (head, other):
        found = Cluster(head, other, request.param)
        found.start()
        yield found


class Cut:
    """Watches the run: cuts the other host off when rank 0 is there, mends it, and stops the run at last."""

    def __init__(self, cluster: Cluster):
        self._cluster, self.stage = cluster, "warm"
        self.cut_at = self.mended_at = self.grown_at = 0.0
        self._step = 0

    def __call__(self, line: str, log: Log) -> None:
        if not line.startswith("step "):
            return
        cluster, places = self._cluster, {node: rank for rank, node in log.nodes.items()}
        there = places.get(cluster.other.address)
        if self.stage == "warm" and log.step >= 100 and len(log.pids) == 2 and there == 1:
            os.kill(log.pids[0], signal.SIGKILL)  # the other host's rank goes on, and so is the first
            self.stage = "turned"
        elif self.stage in ("warm", "turned") and log.step >= 100 and len(log.pids) == 2 and there == 0:
            cluster.other.cut()
            self.cut_at, self.stage = time.time(), "cut"
        elif self.stage == "cut" and len(log.pids) == 1 and there is None:
            assert processes.wait_until(lambda: len(cluster.other.processes()) <= 1, timeout_s=20)
            cluster.other.mend()
            self.mended_at, self.stage = time.time(), "mended"
        elif self.stage == "mended" and len(log.pids) == 2:
            self.grown_at, self._step, self.stage = time.time(), log.step, "grown"
        elif self.stage == "grown" and log.step > self._step + 200:
            log.process.send_signal(signal.SIGTERM)
            self.stage = "over"


def test_the_rest_of_a_run_goes_on_and_a_host_that_was_cut_off_comes_back_to_it(cluster, monkeypatch) -> None:
    watch = Cut(cluster)
    command = (*DRIVER, DIGITS, "--set", "training.epochs=5000", "--set", "scaling.min_workers=1")
    log = follow(tuple(cluster.head.command(*command)), cluster.env(cluster.head), watch)
    assert watch.stage == "over", log.text
    monkeypatch.setenv("EAGLERAY_STORAGE", str(cluster.shared / "storage"))
    found = verify(log.run_id, print)
    assert found.is_proven, found.findings
    folder = cluster.shared / "storage/runs" / log.run_id
    losses = [line for line in log.lines if line.startswith("lost rank 0 (")]
    backs = [line for line in log.lines if line.startswith("training again after ")]
    assert losses, log.text
    back_s = watch.grown_at - watch.mended_at
    print(f"\n{cluster.profile.name}: {losses[-1]}; {backs[-1]}; the host trains again after {back_s:.1f} s")
    assert float(backs[-1].split()[3]) <= 12
    assert all(line.endswith("; 0 steps to redo") for line in backs), backs
    assert "Traceback" not in log.text
    number = first_without_the_host(log)
    formed_at = json.loads((folder / f"attempts/{number:06d}.json").read_text())["time"]
    stale = [path for path in commits(folder) if attempt_of(path) < number]
    assert [path for path in stale if path.stat().st_mtime > formed_at] == []


def first_without_the_host(log: Log) -> int:
    """Number of the first formation after the cut."""
    loss = max(index for index, line in enumerate(log.lines) if line.startswith("lost rank 0 ("))
    return int(next(line for line in log.lines[loss:] if line.startswith("attempt ")).split()[1].rstrip(":"))


def commits(folder: Path) -> list[Path]:
    return [*folder.glob("journal/segment-*"), *folder.glob("checkpoints/step-*/COMMIT")]


def attempt_of(path: Path) -> int:
    name = path.parent.name if path.name == "COMMIT" else path.name
    return int(name.split("attempt-")[1][:4])
