"""The shared cluster: demand starts nodes, Ray's commands work, nothing listens beyond loopback."""

import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eagleray.cluster import local, nodes, ports, processes, state
from eagleray.errors import ClusterError
from eagleray.workflows import env as env_workflow
from support import listening

DEMAND = """
import json, time, ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Strategy
ray.init(logging_level="ERROR", log_to_driver=False)
group = placement_group([{"GPU": 1, "CPU": 1}] * 2, bundle_label_selector=[{"eagleray.io/pool": "train"}] * 2)
ray.get(group.ready(), timeout=150)
@ray.remote(num_gpus=1, num_cpus=1)
def look():
    import os, platform, eagleray.errors
    kept = ("EAGLERAY_HOME", "EAGLERAY_STORAGE", "EAGLERAY_TRACKING_URI", "GLOO_SOCKET_IFNAME", "TMPDIR")
    return {"env": {key: os.environ.get(key) for key in kept}, "system": platform.system(),
            "node": ray.get_runtime_context().get_node_id(), "gpus": ray.get_gpu_ids()}
places = [Strategy(group, placement_group_bundle_index=index) for index in (0, 1)]
found = [look.options(scheduling_strategy=place).remote() for place in places]
print(json.dumps(ray.get(found, timeout=150)))
remove_placement_group(group)
"""


def run(command, environment, timeout_s=170):
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_demand_starts_two_nodes_of_the_right_pool(cluster, cluster_env, local_spec, tmp_path):
    began = time.time()
    script = tmp_path / "demand.py"
    script.write_text(DEMAND)
    seen = json.loads(run([sys.executable, str(script)], cluster_env, 90).splitlines()[-1])

    assert len({one["node"] for one in seen}) == 2
    assert [one["gpus"] for one in seen] == [[0], [0]]
    assert {one["system"] for one in seen} == {"Linux"}  # `import platform` is still the standard library's
    environment = seen[0]["env"]
    assert environment["EAGLERAY_HOME"] == os.environ["EAGLERAY_HOME"]
    assert environment["EAGLERAY_STORAGE"] == os.environ["EAGLERAY_STORAGE"]
    assert environment["EAGLERAY_TRACKING_URI"] == os.environ["EAGLERAY_TRACKING_URI"]
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment["TMPDIR"].startswith(str(cluster.runtime_dir))
    mine = [node for node in local.status("tests").nodes if node.created_s > began]
    assert {node.node_type for node in mine} <= {"train_gpu"}
    assert len({node.temp_dir for node in mine}) == len(mine)


def test_rays_own_commands_work_after_env(cluster, cluster_env):
    exports = env_workflow.as_shell(env_workflow.env("tests"))
    bare = {key: value for key, value in cluster_env.items() if not key.startswith("RAY_")}
    bare["PATH"] = os.defpath  # `ray` is where `env` says
    commands = (
        "ray status",
        'ray job submit -- python -c "print(6 * 7, end=chr(10))"',
        "ray list nodes --format json",
    )
    with ThreadPoolExecutor() as pool:
        status, submitted, listed = pool.map(
            lambda command: run(["bash", "-c", f"{exports}\n{command}"], bare), commands
        )
    assert "eagleray_node_head" in status
    assert "\n42" in submitted
    assert "succeeded" in submitted
    assert any(entry["is_head_node"] for entry in json.loads(listed))


@pytest.mark.usefixtures("ingress")
def test_every_listener_is_on_loopback_and_in_the_table_of_docs_security(cluster):
    assert set(listening.table()) == {*cluster.ports, *listening.KINDS, listening.DRIVER}, (
        "docs/security.md and the cluster's ports differ"
    )
    # Whatever is still starting: the ingress answers before them.
    processes.wait_until(lambda: not ports.is_free(state.LOOPBACK, cluster.ports["serve"]), timeout_s=60)
    processes.wait_until(lambda: not _commands(cluster, "eagleray.serving.start"), timeout_s=60)
    found = listening.compared(cluster)
    assert not found.without_row, "no row in docs/security.md for " + "; ".join(found.without_row)
    assert not found.beyond
    assert {*cluster.ports, "gateway"} <= found.seen


def _commands(cluster: state.ClusterState, part: str) -> list[str]:
    """Command lines of the cluster's processes that have `part` in them."""
    found = []
    for process in processes.belonging(cluster.marker):
        try:
            command = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        found += [command] if part in command else []
    return found


def test_the_state_is_the_owners_alone(cluster):
    assert stat.S_IMODE(cluster.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(cluster.runtime_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(cluster.token_path.stat().st_mode) == 0o600
    assert not any(path.stat().st_mode & 0o077 for path in cluster.directory.glob("*.json"))


def test_status_names_every_part_of_the_head(cluster):
    found = local.status("tests")
    assert found.is_ready
    assert {"supervisor", "gcs_server", "monitor", "dashboard", "raylet"} <= {
        p.role for p, _ in found.processes
    }
    assert all(alive for _, alive in found.processes)


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {'0' * 64}"}])
def test_no_token_no_entry(cluster, headers):
    request = urllib.request.Request(f"{cluster.dashboard_url}/api/jobs/", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code in (401, 403)


def test_a_second_up_of_the_same_name_says_so(cluster, local_spec):
    with pytest.raises(ClusterError, match=r"runs already.*eagleray status --name tests.*eagleray down"):
        local.up("tests", local_spec)
    assert local.status("tests").is_ready


def test_the_autoscaler_writes_no_warning_every_tick(cluster):
    log = next(cluster.runtime_dir.glob("h/session_2*/logs/monitor.log")).read_text()
    assert log.count("WARNING") < 10, log[-3000:]


@pytest.mark.slow
def test_idle_nodes_go_away_and_leave_their_logs(cluster, cluster_env, local_spec, tmp_path):
    script = tmp_path / "demand.py"
    script.write_text(DEMAND)
    run([sys.executable, str(script)], cluster_env, 90)
    ids = {node.node_id for node in local.status("tests").nodes}
    assert ids
    limit_s = local_spec.idle_timeout_s + 15
    assert processes.wait_until(lambda: not local.status("tests").nodes, timeout_s=limit_s), nodes.read_all(
        cluster.nodes_dir
    )
    assert processes.wait_until(lambda: not list(cluster.nodes_dir.glob("*.json")), timeout_s=5)
    for node_id in ids:
        assert list((cluster.logs_dir / node_id).glob("worker-*")), node_id
        assert not (cluster.runtime_dir / node_id).exists()


CAPACITY = """
import json, ray
from eagleray.cluster import capacity_ray260
from eagleray.errors import CapacityError
ray.init(logging_level="ERROR", log_to_driver=False)
try:
    capacity_ray260.require([{"GPU": 1, "CPU": 1}] * 9, {"eagleray.io/pool": "train"})
except CapacityError as error:
    print(json.dumps([str(error), sorted(node.name for node in capacity_ray260.node_types())]))
capacity_ray260.require([{"GPU": 1, "CPU": 1}] * 4, {"eagleray.io/pool": "train"})
"""


def test_capacity_is_known_before_any_node_runs(cluster, cluster_env, tmp_path):
    script = tmp_path / "capacity.py"
    script.write_text(CAPACITY)
    refusal, types = json.loads(run([sys.executable, str(script)], cluster_env).splitlines()[-1])
    assert "wants 9 workers with 1 GPU" in refusal
    assert "node types allow at most 4" in refusal
    assert {"train_gpu", "serve_gpu", "cpu_worker"} <= set(types)
