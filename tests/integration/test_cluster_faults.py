"""A second cluster beside the shared one, and what happens when its parts are killed."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from eagleray.cluster import local, ports, processes, state
from eagleray.errors import ClusterError, ClusterNotRunning
from support.drivers import environment

HOLD = """
import sys, time, ray
from pathlib import Path
ray.init(logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class Counter:
    def __init__(self): self.count = 0
    def add(self): self.count += 1; return self.count
counter = Counter.remote()
flag = Path(sys.argv[1])
while not flag.with_suffix(".stop").exists():
    flag.write_text(str(ray.get(counter.add.remote(), timeout=60)))
    time.sleep(0.1)
"""


@pytest.fixture
def second(eagleray_home, local_spec):
    """A cluster that the test may break; nothing of it is left afterwards, whatever the test did."""
    found = local.up("second", local_spec)
    yield found
    if state.read("second"):
        local.down("second")
    assert_nothing_left(found)


def assert_nothing_left(cluster):
    assert processes.belonging(cluster.marker) == []
    assert not cluster.directory.exists()
    assert not cluster.runtime_dir.exists()
    assert [port for port in cluster.ports.values() if not ports.is_free(cluster.host, port)] == []


def one(cluster, role) -> processes.Process:
    return next(process for process in cluster.processes() if process.role == role)


def kill(process: processes.Process) -> None:
    processes.send(process, signal.SIGKILL)
    assert processes.wait_until(lambda: not process.is_alive, timeout_s=60)


def await_replaced(cluster, role, killed, timeout_s=90):
    assert processes.wait_until(
        lambda: one(cluster, role) != killed and one(cluster, role).is_alive, timeout_s=timeout_s
    ), (cluster.logs_dir / "supervisor.log").read_text()


def test_a_second_cluster_survives_its_gcs_and_ends_without_its_supervisor(cluster, second):
    assert not set(second.ports.values()) & set(cluster.ports.values())
    gcs = one(second, "gcs_server")
    kill(gcs)
    await_replaced(second, "gcs_server", gcs)
    assert processes.wait_until(lambda: local.is_ready(second), timeout_s=90)

    kill(one(second, "supervisor"))
    assert (one(second, "supervisor"), False) in local.status("second").processes
    report = local.down("second")
    assert report.num_processes >= 8
    print(f"down took {report.seconds:.1f} s")
    assert report.seconds <= 30, "a goal of 5 s on a machine that is free"
    assert_nothing_left(second)
    with pytest.raises(ClusterNotRunning, match=r"no cluster 'second' is running.*running: tests"):
        state.find("second")
    assert local.is_ready(cluster)


def test_ctrl_c_in_up_leaves_nothing(eagleray_home, tmp_path):
    script = (
        "from eagleray.workflows.up import up\n"
        f"up('interrupted', {str(Path(__file__).parents[2] / 'local.toml')!r})\n"
    )
    starting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert processes.wait_until(
        lambda: (found := state.read("interrupted")) is not None and bool(found.processes()), timeout_s=90
    )
    found = state.read("interrupted")
    assert found is not None
    with pytest.raises(ClusterError, match=r"runs already|is being started by process"):
        local.up("interrupted", local_spec_of_repository())
    starting.send_signal(signal.SIGINT)
    printed, _ = starting.communicate(timeout=120)
    assert starting.returncode != 0
    assert "stopping what was started" in printed
    assert_nothing_left(found)


def local_spec_of_repository():
    from eagleray.specs import LocalSpec, load

    return load(LocalSpec, Path(__file__).parents[2] / "local.toml")


def test_a_dashboard_port_in_use_is_named(cluster, local_spec):
    taken = cluster.ports["dashboard"]
    with pytest.raises(ClusterError, match=rf"dashboard_port {taken} of 127.0.0.1 is in use; choose another"):
        local.up("third", local_spec.model_copy(update={"dashboard_port": taken}))
    assert state.read("third") is None


@pytest.mark.slow
def test_kill_of_everything_then_up_cleans_up_and_starts(second, local_spec):
    for process in processes.belonging(second.marker):
        processes.send(process, signal.SIGKILL)
    assert processes.wait_until(lambda: not second.is_running, timeout_s=10)
    with pytest.raises(ClusterNotRunning, match="its processes have ended"):
        state.find("second")
    said = []
    again = local.up("second", local_spec, say=said.append)
    assert any("cleaning up after cluster 'second'" in line for line in said)
    assert not second.runtime_dir.exists()
    assert local.is_ready(again)
    local.down("second")
    assert_nothing_left(again)


@pytest.mark.slow
def test_a_killed_node_is_replaced_and_actors_go_on(second, tmp_path):
    flag = tmp_path / "count"
    driver = subprocess.Popen([sys.executable, "-c", HOLD, str(flag)], env=environment(second))
    try:
        assert processes.wait_until(flag.exists, timeout_s=40)
        (node,) = local.status("second").nodes
        assert node.process is not None
        kill(node.process)
        assert processes.wait_until(
            lambda: [found.node_id for found in local.status("second").nodes] not in ([], [node.node_id]),
            timeout_s=30,
        )
        before = flag.read_text()
        assert processes.wait_until(lambda: flag.read_text() not in ("", before), timeout_s=60)
        assert not (second.runtime_dir / node.node_id).exists()
        assert list((second.logs_dir / node.node_id).glob("worker-*"))

        monitor = one(second, "monitor")
        kill(monitor)
        await_replaced(second, "monitor", monitor)
        kept = {found.node_id for found in local.status("second").nodes}
        gcs = one(second, "gcs_server")
        kill(gcs)
        await_replaced(second, "gcs_server", gcs)
        before = flag.read_text()
        assert processes.wait_until(lambda: flag.read_text() not in ("", before), timeout_s=60)
        assert kept <= {found.node_id for found in local.status("second").nodes}
    finally:
        flag.with_suffix(".stop").touch()
        driver.terminate()
        driver.wait(30)


@pytest.mark.slow
def test_a_node_whose_raylet_stands_still_ends_with_its_workers_and_is_replaced(second, tmp_path):
    flag = tmp_path / "count"
    driver = subprocess.Popen([sys.executable, "-c", HOLD, str(flag)], env=environment(second))
    try:
        assert processes.wait_until(flag.exists, timeout_s=40)
        (node,) = local.status("second").nodes
        assert node.process is not None
        whole = [node.process, *descendants(node.process)]
        (raylet,) = [process for process in whole if command_of(process) == "raylet"]
        processes.send(raylet, signal.SIGSTOP)
        began = time.monotonic()
        assert processes.wait_until(lambda: not any(process.is_alive for process in whole), timeout_s=30)
        print(
            f"the node and its {len(whole) - 1} processes ended {time.monotonic() - began:.1f} s after that"
        )
        log = (second.logs_dir / f"{node.node_id}.log").read_text()
        assert f"{node.node_id}: ended: the cluster counts it as dead" in log
        before = flag.read_text()
        assert processes.wait_until(lambda: flag.read_text() not in ("", before), timeout_s=60)
    finally:
        flag.with_suffix(".stop").touch()
        driver.terminate()
        driver.wait(30)


@pytest.mark.slow
def test_a_head_that_stood_still_until_it_counted_as_dead_comes_back(second):
    before = one(second, "raylet")
    processes.send(before, signal.SIGSTOP)
    assert processes.wait_until(lambda: alive_nodes(second) == 0, timeout_s=30, interval_s=0.5)
    processes.send(before, signal.SIGCONT)
    await_replaced(second, "raylet", before)
    assert processes.wait_until(lambda: alive_nodes(second) == 1, timeout_s=30, interval_s=0.5)


def descendants(process: processes.Process) -> list[processes.Process]:
    found = [processes.of(pid) for pid in processes.children(process.pid)]
    return [*found, *(below for child in found for below in descendants(child))]


def command_of(process: processes.Process) -> str:
    return Path(f"/proc/{process.pid}/comm").read_text().strip()


def alive_nodes(cluster) -> int:
    return sum(node["state"] == "ALIVE" for node in ask(cluster, "/api/v0/nodes")["data"]["result"]["result"])


@pytest.mark.slow
@pytest.mark.parametrize("role", ["dashboard", "log_monitor", "monitor", "raylet"])
def test_head_parts_are_restarted_and_jobs_run(second, role):
    killed = one(second, role)
    kill(killed)
    await_replaced(second, role, killed)
    assert processes.wait_until(lambda: local.is_ready(second), timeout_s=20)
    submitted = ask(second, "/api/jobs/", {"entrypoint": "true"})["submission_id"]
    assert processes.wait_until(
        lambda: ask(second, f"/api/jobs/{submitted}")["status"] == "SUCCEEDED", timeout_s=60, interval_s=0.5
    ), ask(second, f"/api/jobs/{submitted}")


def ask(cluster, path, body=None):
    headers = {"Authorization": f"Bearer {cluster.token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{cluster.dashboard_url}{path}", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)
