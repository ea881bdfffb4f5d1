"""`python -m eagleray.cluster.node_main_ray260 PLAN`: leads the processes of one worker node until it ends.

`ray start --address` refuses several nodes on loopback; this does what it would do, with Ray 2.60's classes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from eagleray.cluster import nodes, processes, recovery_ray260

_POLL_S = 0.2
_asked_to_end = False


def _on_terminate(_number: int, _frame: FrameType | None) -> None:
    global _asked_to_end  # noqa: PLW0603 - a signal handler has no other way to tell the loop
    _asked_to_end = True


def main(plan: Path) -> None:
    """Start the node that `plan` describes; stay until it is dead, drained or told to end. Never returns.

    Dead is a node, too, whose raylet the GCS has given up: its workers end with it.
    """
    began = time.monotonic()
    planned = nodes.read(plan)
    assert planned is not None, f"{plan} is no node"
    path = nodes.path_of(plan.parent, planned.node_id)
    if not path.exists():  # the provider died between starting us and writing us down
        nodes.write(path, replace(planned, process=processes.this_process(planned.node_type)))
    node = _start(planned)
    print(f"{planned.node_id} started in {time.monotonic() - began:.1f} s", flush=True)
    # Ray's Node has set a handler of its own (2.60), which waits 30 s for a raylet that stands still.
    signal.signal(signal.SIGTERM, _on_terminate)
    given_up = recovery_ray260.watch_for_death(node)
    dead = []
    while not (_asked_to_end or dead or given_up.is_set()):
        time.sleep(_POLL_S)
        dead = node.dead_processes()
    if dead:
        print(f"{planned.node_id}: ended: {', '.join(kind for kind, _ in dead)}", flush=True)
    is_given_up = given_up.is_set() or (not dead and recovery_ray260.counts_as_dead(node))
    if is_given_up:
        print(f"{planned.node_id}: ended: the cluster counts it as dead", flush=True)
    node.kill_all_processes(check_alive=False, allow_graceful=_asked_to_end and not is_given_up)
    # At once: the replacement of a node is not started before this process is gone.
    os._exit(0)


def _start(planned: nodes.Node):
    """Ray's node, with its raylet and agents running."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    resources = dict(planned.resources)
    cpus, gpus = resources.pop("CPU", 0), resources.pop("GPU", 0)
    memory = resources.pop("memory", None)  # without it each node would offer the whole machine's
    resources[f"eagleray_node_{planned.node_id}"] = 1
    params = RayParams(
        gcs_address=planned.gcs_address,
        node_ip_address=planned.gcs_address.rpartition(":")[0],
        node_name=planned.node_id,
        num_cpus=int(cpus),
        num_gpus=int(gpus),
        memory=memory,
        resources=resources,
        labels=dict(planned.labels),
        object_store_memory=int(planned.options.get("object_store_mib", 80)) * 2**20,
        temp_dir=planned.temp_dir,
        dashboard_agent_listen_port=0,
        include_log_monitor=False,  # type: ignore[arg-type] - annotated str, used as bool
    )
    # Fate sharing is by thread: this must be the main one, or the node dies with the thread.
    node = Node(params, head=False, shutdown_at_exit=True, spawn_reaper=True)
    node.start_log_monitor()  # after the raylet: its imports would compete with those of the agents
    return node


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_terminate)
    main(Path(sys.argv[1]))
