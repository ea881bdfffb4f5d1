"""A job that is stopped before its workers are up, on a real cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from eagleray.client import JobClient, submit_spec
from eagleray.cluster.state import ClusterState

ROOT = Path(__file__).parents[2]

WAITING = """\
import os, signal, threading, time
import ray
from eagleray.workflows.stopping import stop_on_sigterm

ray.init(log_to_driver=False, logging_level="ERROR")
stop_on_sigterm()
on_the_head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
pending = on_the_head(lambda: time.sleep(60)).remote()
threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    ray.get(pending)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ray_hands_on_a_stop_that_comes_while_it_waits(cluster_env: dict[str, str]) -> None:
    """It loses any other exception than KeyboardInterrupt, or makes a SystemError of it (2.60)."""
    done = subprocess.run(
        [sys.executable, "-c", WAITING],
        cwd=ROOT / "platform",
        env=cluster_env,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.stdout == "interrupted\n", done.stderr


def test_a_run_without_workers_yet_is_stopped_and_says_so(cluster: ClusterState, eagleray_home: Path) -> None:
    with JobClient(cluster.dashboard_url, cluster.token) as client:
        job_id = submit_spec(client, ROOT / "examples/train/digits.toml")
        log = ""
        for text in client.follow(job_id):
            log += text
            if "\nrun digits-" in log:
                break
        assert client.stop(job_id)
        assert client.wait(job_id, timeout_s=30).status == "STOPPED"
        log = client.logs(job_id)
    match = re.search(r"^stopped; go on with it: eagleray resume (digits-\S+)$", log, re.MULTILINE)
    assert match, log
    assert "attempt 1" not in log
    assert "Traceback" not in log
    report = json.loads((eagleray_home / "storage/runs" / match[1] / "report.json").read_text())
    assert report["status"] == "STOPPED"
