"""What takes minutes: a fault every 20 s, and a loaded machine on which nothing must be taken for one.

EAGLERAY_STORM_S and EAGLERAY_QUIET_S shorten them, for a look.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.cluster import local, processes, state
from eagleray.specs import LocalSpec
from eagleray.workflows.verify import verify
from support.drivers import DRIVER, ROOT, Log, environment, follow, report

STORM_S = float(os.environ.get("EAGLERAY_STORM_S", "600"))
QUIET_S = float(os.environ.get("EAGLERAY_QUIET_S", "1800"))
EVERY_S = 20.0
GPT = "examples/train/gpt.toml"
ENDLESS = tuple(
    word
    for setting in ("training.steps=1000000", "checkpoint.every_steps=10", "scaling.min_workers=1")
    for word in ("--set", setting)
)
RESIZABLE = (sys.executable, str(ROOT / "tests/support/resizable_main.py"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stormy(eagleray_home: Path, local_spec: LocalSpec) -> Iterator[state.ClusterState]:
    """A cluster of these tests alone."""
    yield local.up("stormy", local_spec)
    local.down("stormy")


class Storm:
    """A watcher that does harm every 20 s, one kind after the other, and stops the run at the end."""

    def __init__(self, cluster: state.ClusterState, size: int):
        self._cluster, self._size = cluster, size
        self._kinds = itertools.cycle([self.worker, self.node, self.hang, self.gcs, self.resize])
        self.began = self._next_at = 0.0
        self.done: list[str] = []

    def __call__(self, line: str, log: Log) -> None:
        if not line.startswith("step "):
            return
        now = time.monotonic()
        if not self.began:
            self.began, self._next_at = now, now + EVERY_S / 2
        if now - self.began > STORM_S:
            log.process.send_signal(signal.SIGTERM)
            self._next_at = float("inf")
            self.began = float("inf")
        elif now >= self._next_at and len(log.pids) > 1:  # somebody has to be left, to lose nothing
            self._next_at += EVERY_S
            kind = next(self._kinds)
            kind(log)
            self.done.append(kind.__name__)

    def worker(self, log: Log) -> None:
        os.kill(log.pids[len(self.done) % len(log.pids)], signal.SIGKILL)

    def node(self, log: Log) -> None:
        (node,) = [node for node in local.status(self._cluster.name).nodes if node.node_id == log.nodes[0]]
        assert node.process is not None
        processes.send(node.process, signal.SIGKILL)

    def hang(self, log: Log) -> None:
        os.kill(log.pids[max(log.pids)], signal.SIGSTOP)

    def gcs(self, log: Log) -> None:
        (gcs,) = [process for process in self._cluster.processes() if process.role == "gcs_server"]
        processes.send(gcs, signal.SIGKILL)

    def resize(self, log: Log) -> None:
        self._size = 2 if self._size == 3 else 3
        assert log.process.stdin is not None
        log.process.stdin.write(f"{self._size}\n")
        log.process.stdin.flush()


@pytest.mark.timeout(STORM_S + 300)
def test_a_storm_of_faults_costs_no_sample_and_little_time(eagleray_home, stormy) -> None:
    storm = Storm(stormy, 3)
    env = {**environment(stormy), "EAGLERAY_PROFILE": "fast"}
    log = follow((*RESIZABLE, GPT, *ENDLESS, "--set", "scaling.num_workers=3"), env, storm)
    found = report(eagleray_home, log.run_id)
    assert found["status"] == "STOPPED", log.text
    pauses = [recovery["pause_s"] for recovery in found["recoveries"]]
    assert len(storm.done) >= 0.8 * STORM_S / EVERY_S, storm.done
    assert None not in pauses[:-1], "only from the last loss may it not be back when it is stopped"
    whole = found["goodput"]
    goodput = whole["useful_s"] / (whole["wall_s"] - whole["lost_s"]["start"])
    print(f"\n{len(storm.done)} faults, {len(pauses)} losses, goodput {goodput:.1%}: {whole}")
    print(["not back" if pause is None else f"{pause:.1f} s" for pause in pauses])
    verified = verify(log.run_id, print)
    assert verified.is_proven, verified.findings
    assert verified.step > 0
    assert "Traceback" not in log.text
    assert goodput >= 0.8


@pytest.mark.timeout(QUIET_S + 300)
def test_nothing_is_taken_for_a_fault_while_every_core_is_busy(eagleray_home, stormy) -> None:
    began: list[float] = []

    def watch(line: str, log: Log) -> None:
        if line.startswith("step "):
            began or began.append(time.monotonic())
            if time.monotonic() - began[0] > QUIET_S:
                log.process.send_signal(signal.SIGTERM)
                began[0] = float("inf")

    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() or 1)]
    try:
        # With fewer it would begin while nodes still start, and grow: another attempt, without a fault.
        whole = ("--set", "scaling.min_workers=2")
        log = follow((*DRIVER, GPT, *ENDLESS, *whole), environment(stormy), watch)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    found = report(eagleray_home, log.run_id)
    assert (found["status"], found["recoveries"]) == ("STOPPED", []), log.text
    assert found["num_attempts"] == 1, log.text
