"""What a job's driver can learn about itself and the cluster's nodes."""

from __future__ import annotations

import json
import os


def submission_id() -> str | None:
    """The submission id of the Ray job that this process drives; None outside of one."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return (config.get("metadata") or {}).get("job_submission_id")


def submitted_at() -> float | None:
    """Time at which Ray accepted this job; None outside of one."""
    from ray.experimental.internal_kv import _internal_kv_get

    if (job := submission_id()) is None:
        return None
    record = _internal_kv_get(f"_ray_internal_job_info_{job}", namespace="job")
    return json.loads(record)["start_time"] / 1000 if record else None


def node_name(node_id: str) -> str:
    """The name by which people know the node: ours where it has one, else its host's address.

    (Or the name that its `ray start` was given.)
    """
    import ray

    for node in ray.nodes():
        if node["NodeID"] == node_id:
            ours = [name for name in node["Resources"] if name.startswith("eagleray_node_")]
            return ours[0].removeprefix("eagleray_node_") if ours else node["NodeName"]
    return node_id[:8]
