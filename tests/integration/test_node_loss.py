"""A node of the local cluster that dies while a run trains on it: it is replaced, and the run goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from eagleray.cluster import local, processes

ROOT = Path(__file__).parents[2]
SUBMIT = ("ray", "job", "submit", "--runtime-env", "runtime_env.yaml", "--", "python", "jobs/train.py")


@pytest.mark.slow
def test_a_run_outlives_a_node(eagleray_home: Path, cluster, cluster_env: dict[str, str]) -> None:
    lines: list[str] = []
    killed: list[str] = []
    running = subprocess.Popen(
        [*SUBMIT, "examples/train/digits.toml", "--set", "training.epochs=30"],
        cwd=ROOT,
        env={**cluster_env, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line.rstrip())
            step = re.match(r"step (\d+)/", line)
            if step and int(step[1]) >= 200 and not killed:
                (name,) = re.findall(r"rank 1: node (\S+), pid", "\n".join(lines))
                (node,) = [node for node in local.status(cluster.name).nodes if node.node_id == name]
                assert node.process is not None
                processes.send(node.process, signal.SIGKILL)
                killed.append(name)
        exit_code = running.wait(60)
    finally:
        running.kill()
        running.wait(60)
    text = "\n".join(lines)
    assert killed
    assert exit_code == 0, text
    (run_id,) = re.findall(r"^run (\S+-\d{8}-\d{6}-\w+)$", text, re.MULTILINE)
    report = json.loads((eagleray_home / "storage/runs" / run_id / "report.json").read_text())
    assert report["status"] == "FINISHED"
    assert len(report["recoveries"]) == 1, text
    print(f"{report['recoveries'][0]['pause_s']:.1f} s, {report['recoveries'][0]['redone_steps']} steps")
    assert "Traceback" not in text
