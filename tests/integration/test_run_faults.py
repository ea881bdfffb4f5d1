"""Runs on a real cluster whose parts are killed or stop: workers, nodes, the GCS, the driver itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.cluster import local, processes, state
from eagleray.specs import LocalSpec
from eagleray.workflows.verify import verify
from support.drivers import DIGITS, DRIVER, RESUME, Log, environment, follow, report

pytestmark = pytest.mark.slow
ENDLESS = ("--set", "training.epochs=10000")
SHRINKS = ("--set", "scaling.min_workers=1")


@pytest.fixture(scope="module")
def faulty(eagleray_home: Path, local_spec: LocalSpec) -> Iterator[state.ClusterState]:
    """A cluster of these tests alone."""
    yield local.up("faulty", local_spec)
    local.down("faulty")


class Harm:
    """A watcher that does harm once, and stops the run when it has trained for a while as before."""

    def __init__(self, harm: Callable[[Log], Any], is_over: Callable[[Log], bool]):
        self._harm, self._is_over = harm, is_over
        self._over_at: int | None = None
        self._stage = "before"

    def __call__(self, line: str, log: Log) -> None:
        if not line.startswith("step "):
            return
        if self._stage == "before" and log.step >= 150:
            self._harm(log)
            self._stage = "hit"
        elif self._stage == "hit" and self._is_over(log):
            self._over_at, self._stage = log.step, "over"
        elif self._stage == "over" and log.step >= (self._over_at or 0) + 60:
            log.process.send_signal(signal.SIGTERM)
            self._stage = "stopped"


def is_whole_again(log: Log) -> bool:
    return len(log.pids) == 2 and any(line.startswith("training again after ") for line in log.lines)


def stopped(home: Path, log: Log) -> Any:
    """The report of a run that was stopped at last, and nothing else happened to it."""
    found = report(home, log.run_id)
    assert found["status"] == "STOPPED", log.text
    assert "Traceback" not in log.text
    return found


def proven(run_id: str) -> Any:
    found = verify(run_id, print)
    assert found.is_proven, found.findings
    return found


def gcs(cluster: state.ClusterState) -> processes.Process:
    return next(process for process in cluster.processes() if process.role == "gcs_server")


def test_a_gcs_that_is_killed_and_comes_back_costs_no_step(eagleray_home, faulty) -> None:
    before = gcs(faulty)

    def is_back(_: Log) -> bool:
        return gcs(faulty) != before and gcs(faulty).is_alive and local.is_ready(faulty)

    harm = Harm(lambda _: processes.send(before, signal.SIGKILL), is_back)
    log = follow((*DRIVER, DIGITS, *ENDLESS), environment(faulty), harm)
    found = stopped(eagleray_home, log)
    assert (found["recoveries"], found["num_attempts"]) == ([], 1), log.text
    assert proven(log.run_id).formations == (1,)


@pytest.mark.parametrize("may_shrink", [True, False], ids=["the rest goes on", "it waits for another"])
def test_a_run_outlives_a_node_and_redoes_nothing(eagleray_home, faulty, may_shrink) -> None:
    def kill(log: Log) -> str:
        (node,) = [node for node in local.status(faulty.name).nodes if node.node_id == log.nodes[1]]
        assert node.process is not None
        processes.send(node.process, signal.SIGKILL)
        return node.node_id

    settings = SHRINKS if may_shrink else ()
    harm = Harm(kill, is_whole_again)
    log = follow((*DRIVER, DIGITS, *ENDLESS, *settings), environment(faulty), harm)
    (recovery,) = stopped(eagleray_home, log)["recoveries"]
    print(f"{recovery['pause_s']:.1f} s, {recovery['redone_steps']} steps redone")
    assert recovery["redone_steps"] == 0
    assert set(proven(log.run_id).world_sizes) == ({1, 2} if may_shrink else {2})


def test_a_worker_that_is_stopped_is_found_ended_and_replaced(eagleray_home, faulty) -> None:
    pids: list[int] = []

    def stop(log: Log) -> None:
        pids.append(log.pids[1])
        os.kill(log.pids[1], signal.SIGSTOP)

    env = {**environment(faulty), "EAGLERAY_PROFILE": "fast"}
    log = follow((*DRIVER, DIGITS, *ENDLESS, *SHRINKS), env, Harm(stop, is_whole_again))
    (recovery,) = stopped(eagleray_home, log)["recoveries"]
    print(f"{recovery['pause_s']:.1f} s: {recovery['reason']}")
    assert re.match(r"it has not answered for 3\.\d s; the last thing it did: step \d+, ", recovery["reason"])
    assert re.search(rf"lost rank 1 \(node \S+, pid {pids[0]}\): ", log.text)
    assert recovery["redone_steps"] == 0
    assert processes.wait_until(lambda: not processes.of(pids[0]).is_alive, timeout_s=10)
    proven(log.run_id)


WEDGED = """
import time
from pathlib import Path
import torch

class Net(torch.nn.Sequential):
    def forward(self, x):
        flag = Path({flag!r})
        if flag.exists() and torch.distributed.get_rank() == 1:
            flag.unlink()
            time.sleep(600)
        return super().forward(x)

def build(signature):
    return Net(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
"""


def test_a_worker_that_is_wedged_in_the_users_code_is_found_ended_and_replaced(
    eagleray_home, faulty, tmp_path
) -> None:
    flag = tmp_path / "wedge"
    (tmp_path / "wedged_net.py").write_text(WEDGED.format(flag=str(flag)))
    spec = tmp_path / "wedged.toml"
    spec.write_text(
        "kind = 'train'\nname = 'wedged'\ncode = ['wedged_net.py']\n"
        "[data]\nkind = 'digits'\n[loss]\nkind = 'cross_entropy'\n[optimizer]\nkind = 'sgd'\nlr = 1e-2\n"
        "[model]\nkind = 'module'\nfunction = 'wedged_net:build'\n[training]\nsteps = 1000000\n"
        "[scaling]\nnum_workers = 2\nmin_workers = 1\ngpus_per_worker = 1\n"
    )
    env = {**environment(faulty), "EAGLERAY_PROFILE": "fast"}
    log = follow((*DRIVER, str(spec)), env, Harm(lambda _: flag.touch(), is_whole_again))
    (recovery,) = stopped(eagleray_home, log)["recoveries"]
    print(f"{recovery['pause_s']:.1f} s: {recovery['reason']}")
    assert "; the last thing it did: step" in recovery["reason"]
    assert recovery["ranks"] == [1]
    assert recovery["redone_steps"] == 0
    proven(log.run_id)


HELD = """
import json, ray
from ray.util.state import list_actors
ray.init(logging_level="ERROR", log_to_driver=False)
groups = [one["state"] for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
actors = [one.class_name for one in list_actors(filters=[("state", "!=", "DEAD")])]
actors.remove("_AutoscalingCoordinatorActor")  # Ray's, one for the cluster
total, free = ray.cluster_resources(), ray.available_resources()
print(json.dumps([groups, actors, total.get("GPU", 0) - free.get("GPU", 0)]))
"""


def held(cluster: state.ClusterState) -> list[Any]:
    """The placement groups, actors and GPUs that anybody has."""
    out = subprocess.check_output([sys.executable, "-c", HELD], env=environment(cluster), text=True)
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("moment", ["training", "starting", "recovering"])
def test_a_driver_that_is_killed_leaves_nothing_and_its_run_is_resumed(eagleray_home, faulty, moment) -> None:
    workers: set[int] = set()
    killed: list[int] = []

    def harm(line: str, log: Log) -> None:
        workers.update(log.pids.values())
        is_there = {
            "training": log.step >= 150,
            "starting": bool(log.pids),
            "recovering": bool(killed),
        }[moment]
        if is_there:
            log.process.kill()
        elif moment == "recovering" and log.step >= 150:
            killed.append(log.pids[0])
            os.kill(killed[0], signal.SIGKILL)

    first = follow((*DRIVER, DIGITS, "--set", "training.epochs=20", *SHRINKS), environment(faulty), harm)
    killed_at = time.monotonic()
    assert first.exit_code == -signal.SIGKILL, first.text
    assert processes.wait_until(
        lambda: not any(processes.of(pid).is_alive for pid in workers), timeout_s=30
    ), "its workers go on"
    print(f"its workers ended {time.monotonic() - killed_at:.1f} s after it")
    assert processes.wait_until(lambda: held(faulty) == [[], [], 0], timeout_s=30, interval_s=1), held(faulty)
    second = follow((*RESUME, first.run_id), environment(faulty))
    assert second.exit_code == 0, second.text
    found = report(eagleray_home, first.run_id)
    assert found["status"] == "FINISHED"
    if moment != "starting":
        (began,) = re.findall(r"^going on from step (\d+)", second.text, re.MULTILINE)
        assert first.step - 100 <= int(began) < 460, "it may have been further than it had told"
    assert proven(first.run_id).step == 460
    folder = eagleray_home / "storage" / "runs" / first.run_id
    assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    assert "Traceback" not in second.text
