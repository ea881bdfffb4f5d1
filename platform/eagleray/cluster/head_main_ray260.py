"""`python -m eagleray.cluster.head_main_ray260 FOLDER`: starts the head, writes its processes down, ends.

What `ray start --head` does, without its command line: that takes 1.7 s longer to import, starts the client
server (47 MB), writes into a folder that every Ray of the machine shares, and tells no process from another.
Made for Ray 2.60.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from eagleray.capacity.placement import NodeCapacity
from eagleray.cluster import capacity_ray260, observation_ray260, processes, state
from eagleray.cluster.files import read_json, write_json


def main(folder: Path) -> None:
    """Start GCS, autoscaler, dashboard and raylet of the cluster in `folder`; they outlive this process."""
    from ray._private.node import Node
    from ray._private.utils import write_ray_address

    cluster = state.read_path(folder)
    plan = read_json(folder / "head_plan.json")
    assert cluster is not None
    assert plan is not None, f"no cluster state in {folder}"
    node = Node(_params(cluster, plan), head=True, shutdown_at_exit=False, spawn_reaper=False)
    # Jobs resolve "auto" by this file; without it Ray takes any GCS of the machine: another cluster's.
    write_ray_address(cluster.gcs_address, str(cluster.runtime_dir / "h"))
    node.start_log_monitor()  # after the rest: its imports would compete with theirs
    found = [
        processes.of(info.process.pid, role) for role, infos in node.all_processes.items() for info in infos
    ]
    types = [NodeCapacity(**entry) for entry in plan["node_types"]]
    capacity_ray260.publish(node.get_gcs_client(), plan["max_nodes"], types)
    observation_ray260.expect_ledger(node.get_gcs_client())  # jobs may come before it has started
    write_json(folder / "head.json", [vars(process) for process in found])
    print(json.dumps({process.role: process.pid for process in found}), flush=True)
    os._exit(0)


def _params(cluster: state.ClusterState, plan: dict[str, Any]):
    from ray._private.parameter import RayParams

    ports = cluster.ports
    return RayParams(
        node_ip_address=cluster.host,
        node_name="head",
        gcs_server_port=ports["gcs"],
        num_cpus=0,
        num_gpus=0,
        memory=plan["memory_mib"] * 2**20,
        object_store_memory=plan["object_store_mib"] * 2**20,
        resources={"eagleray_node_head": 1},
        temp_dir=str(cluster.runtime_dir / "h"),
        autoscaling_config=str(cluster.directory / "autoscaling.yaml"),
        include_dashboard=True,
        dashboard_host=cluster.host,
        dashboard_port=ports["dashboard"],  # type: ignore[arg-type] - annotated bool, used as int
        # Each explicit: a second cluster would clash on Ray's defaults, and answer 500 to every submission.
        dashboard_agent_listen_port=ports["agent_http"],
        metrics_agent_port=ports["agent_grpc"],
        metrics_export_port=ports["metrics"],
        runtime_env_agent_port=ports["runtime_env_agent"],
        node_manager_port=ports["node_manager"],
        object_manager_port=ports["object_manager"],
        ray_client_server_port=None,
        include_log_monitor=False,  # type: ignore[arg-type] - annotated str, used as bool
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
