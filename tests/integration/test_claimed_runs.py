"""Training under claims, on a real cluster with its ledger: who gives way to whom, and what it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eagleray.workflows.verify import verify
from support.conversing import ROOT, Driver

LABELS = {"eagleray.io/pool": "cpu"}
"""Two nodes with one CPU each."""
SLOW_NET = """
import time, torch
from pathlib import Path

DEAF = Path(__file__).with_name("deaf")

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def forward(self, inputs):
        time.sleep(6 if DEAF.exists() else 0.02)
        return self.net(inputs)

def build(signature):
    return Slow()
"""


@pytest.fixture
def train(start: Callable[..., Driver], tmp_path: Path) -> Callable[..., Driver]:
    """Starts a run of so many workers; its steps cost time, and no CPU."""
    (tmp_path / "slow_net.py").write_text(SLOW_NET)

    def make(name: str, *, steps: int, most: int, least: int, **scaling: float) -> Driver:
        spec = tmp_path / f"{name}.json"
        table = {
            "kind": "train",
            "name": name,
            "code": [str(tmp_path / "slow_net.py")],
            "data": {"kind": "digits", "normalize": "standard"},
            "model": {"kind": "module", "function": "slow_net:build"},
            "loss": {"kind": "cross_entropy"},
            "optimizer": {"kind": "adamw", "lr": 0.001},
            "training": {"steps": steps, "global_batch_size": 64},
            "checkpoint": {"every_steps": 50},
            "scaling": {"num_workers": most, "min_workers": least, "label_selector": LABELS, **scaling},
        }
        spec.write_text(json.dumps(table))
        return start("-m", "eagleray.workflows.train", str(spec))

    return make


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ingress")  # the ledger is up once the ingress is
def test_runs_give_way_to_each_other_and_to_a_service_and_lose_nothing(
    train: Callable[..., Driver], start: Callable[..., Driver], eagleray_home: Path
) -> None:
    first = train("first", steps=3000, most=2, least=1)
    first.wait_for(r"step \d+/3000 .* 2 workers on 2 nodes")
    second = train("second", steps=1000, most=1, least=1)
    first.wait_for(r"giving 1 of 2 workers back: needed by run second-.*\(training minimum\)")
    first.wait_for(r"attempt \d+: 2 -> 1 worker on 1 node")
    second.wait_for(r"step \d+/1000 .* 1 worker on 1 node")
    claimer = str(ROOT / "tests/integration/claimer.py")
    service = start(claimer, "service", "chat", json.dumps({"CPU": 1.0}), json.dumps(LABELS))
    service.wait_for("ready")
    service.say("now")
    freed = service.wait_for(r"free ([\d.]+)")
    suspended, other = (
        (first, second) if any("suspended after" in line for line in first.lines) else (second, first)
    )
    suspended.wait_for(r"suspended after step \d+: needed by service chat .*; all of it is saved")
    assert not any("suspended after" in line for line in other.lines), other.text
    service.end()
    suspended.wait_for(r"going on after [\d.]+ s")
    for run, size in ((first, {1, 2}), (second, {1})):
        assert run.end(300) == 0, run.text
        assert "Traceback" not in run.text
        run_id = run.lines[0].split()[1]
        verified = verify(run_id, print)
        assert verified.is_proven, verified.findings
        assert size <= set(verified.world_sizes)
        report = json.loads((eagleray_home / "storage/runs" / run_id / "report.json").read_text())
        assert report["recoveries"] == [], "nothing was lost"
        assert len(report["suspensions"]) == (1 if run is suspended else 0)
    print(f"the service had the node after {float(freed[1]):.1f} s", file=sys.stderr)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ingress")
def test_a_train_function_that_does_not_hear_the_notice_loses_its_seat_when_the_time_is_over(
    train: Callable[..., Driver], start: Callable[..., Driver], eagleray_home: Path
) -> None:
    claimer = str(ROOT / "tests/integration/claimer.py")
    service = start(claimer, "service", "chat", json.dumps({"CPU": 1.0}), json.dumps(LABELS))
    service.wait_for("ready")
    run = train("deaf", steps=1000, most=2, least=1, yield_s=2.0)
    run.wait_for(r"step \d+/1000 .* 2 workers on 2 nodes")
    run_id = run.lines[0].split()[1]
    deaf = eagleray_home / "storage/runs" / run_id / "code" / "deaf"
    deaf.touch()  # a step takes longer now than it may take to leave
    service.say("now")
    freed = service.wait_for(r"free ([\d.]+)")
    lost = run.wait_for(
        r"lost rank (\d) \(node .*\): it had not left its node in time \(needed by service chat "
    )
    deaf.unlink()
    assert run.end(200) == 0, run.text
    service.end()
    verified = verify(run_id, print)
    assert verified.is_proven, verified.findings
    assert verified.step == 1000
    report = json.loads((eagleray_home / "storage/runs" / run_id / "report.json").read_text())
    (recovery,) = report["recoveries"]
    assert (recovery["ranks"], recovery["redone_steps"]) == ([int(lost[1])], 0)
    assert len(recovery["nodes"]) == 1
    assert float(freed[1]) < 6, "it did not wait for the step"
