"""What replicas and gateways say, and how many replicas follow from it, in Serve's own autoscaler."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from eagleray.serving import scaling_reasons
from support.serve_autoscaler import APP, autoscaler_of, decided, gateway_says, reasons, replica, told


def test_an_objective_is_kept_by_what_replicas_say(claims, deployment, monkeypatch, clock, logged):
    autoscaler = autoscaler_of(
        deployment, monkeypatch, min_replicas=1, max_replicas=9, max_batch_size=16, objective_p95_ms=100
    )
    targets, came = [1], 0.0
    for second in range(8):
        came += 200 if second < 4 else 2000
        values = {"came": came, "done": came, "requests": came, "waiting": 0, "fixed_s": 0.01}
        told(autoscaler, deployment, clock.s, **values, per_sample_s=0.001, p95_s=0.03, waited_s=0.0)
        for _ in range(10):
            clock.s += 0.1
            targets.append(decided(autoscaler, deployment, monkeypatch, 1, targets[-1], 1))
    assert set(targets[:40]) == {1}
    assert targets[41] == 5, "at once with the first report of ten times as much"
    assert claims.asks[-1].wanted == targets[-1] == 5
    [line] = reasons(logged)
    assert line == (
        f"{APP}: wants 5 replicas, before 1: 2000 samples/s come, and a replica takes 461.5/s "
        "(batches of 16 within 100 ms)"
    )


def test_replicas_that_say_nothing_of_their_passes_count_by_their_requests(
    claims, deployment, monkeypatch, clock, logged
):
    autoscaler = autoscaler_of(deployment, monkeypatch, min_replicas=1, objective_p95_ms=100)
    assert decided(autoscaler, deployment, monkeypatch, 1, 1, 5) == 1, "it has just begun to answer"
    clock.s += 6
    assert decided(autoscaler, deployment, monkeypatch, 1, 1, 5) == 3
    assert decided(autoscaler, deployment, monkeypatch, 1, 3, 5) == 3
    assert reasons(logged) == [
        f"{APP}: wants 3 replicas, before 1: 5 requests are under way, and a replica is to have 2"
    ]


@pytest.mark.parametrize("objective_p95_ms", [None, 100])
def test_what_waits_in_gateways_starts_the_first_replica(
    claims, deployment, monkeypatch, clock, logged, objective_p95_ms
):
    autoscaler = autoscaler_of(deployment, monkeypatch, objective_p95_ms=objective_p95_ms)
    autoscaler.update_running_replica_ids([])
    assert autoscaler.get_decision_num_replicas(0) == 0
    clock.s += 0.1
    gateway_says(autoscaler, clock.s, 1, (0, 1))
    assert autoscaler.get_decision_num_replicas(0) == 1, "at once, without one of Serve's own handles"
    assert claims.asks[-1].wanted == 1
    [line] = reasons(logged)
    assert line.startswith(f"{APP}: wants 1 replicas, before 0: ")
    claims.grants = 0
    for _ in range(300):
        clock.s += 0.1
        gateway_says(autoscaler, clock.s, 1, (1, 1))
        assert autoscaler.get_decision_num_replicas(1) == 1, (
            "nothing has run yet: only it shows what is wrong"
        )


def test_three_times_what_can_be_done_is_decided_on_within_three_seconds(
    claims, deployment, monkeypatch, clock, logged
):
    """Gateways let through what one replica can do, 600/s, and turn the rest away or keep it waiting."""
    autoscaler = autoscaler_of(
        deployment, monkeypatch, min_replicas=1, max_replicas=9, max_batch_size=16, objective_p95_ms=100
    )
    targets, done, arrived, step_s = [1], 0.0, 0, 0.0
    for second in range(30):
        rate = 300 if second < 20 else 1800
        step_s = step_s or (clock.s if second == 20 else 0.0)
        values = {"came": done, "done": done, "requests": done, "waiting": 0, "fixed_s": 0.01}
        told(autoscaler, deployment, clock.s, **values, per_sample_s=0.001, p95_s=0.03, waited_s=0.0)
        gateway_says(autoscaler, clock.s, 100 if second > 20 else 0, (arrived, arrived + rate))
        done, arrived = done + min(rate, 600), arrived + rate
        for _ in range(10):
            clock.s += 0.1
            targets.append(decided(autoscaler, deployment, monkeypatch, 1, targets[-1], 1))
            if targets[-1] >= 4:
                assert step_s
                assert clock.s - step_s <= 3
                break
        if targets[-1] >= 4:
            break
    assert targets[-1] == 4
    [line] = reasons(logged)
    assert "1800 samples/s come, and a replica takes 461.5/s" in line


def test_texts_that_wait_in_gateways_are_no_predictions(claims, deployment, monkeypatch, clock, logged):
    autoscaler = autoscaler_of(deployment, monkeypatch, min_replicas=1, max_replicas=9, objective_p95_ms=100)
    told(autoscaler, deployment, clock.s, texts=2, fixed_s=0.1, per_sample_s=0.1, came=0, done=0, requests=0)
    gateway_says(autoscaler, clock.s, 6, (0, 0), texts=6)
    autoscaler.update_running_replica_ids([replica(deployment, "r0")])
    assert autoscaler.get_decision_num_replicas(1) == 4
    assert reasons(logged)[0].endswith("8 texts are being made, or wait for that")


def test_what_an_objective_wants_runs_as_far_as_the_ledger_grants_it(
    claims, deployment, monkeypatch, clock, logged
):
    autoscaler = autoscaler_of(
        deployment, monkeypatch, min_replicas=1, max_replicas=9, max_batch_size=16, objective_p95_ms=100
    )
    claims.grants = 2
    for came in (0, 2000):
        values = {"came": came, "done": came, "requests": came, "fixed_s": 0.01, "per_sample_s": 0.001}
        told(autoscaler, deployment, clock.s, **values)
        clock.s += 1
        found = [decided(autoscaler, deployment, monkeypatch, 1, 1, 1) for _ in range(3)]
    assert found == [2, 2, 2]
    assert (claims.asks[-1].wanted, claims.asks[-1].floor) == (5, 1)
    assert reasons(logged)[1:] == [f"{APP}: runs 2 of the 5: the ledger grants no more now"]
    decision = scaling_reasons.decisions()[APP]
    assert (decision["wanted"], decision["runs"]) == (5, 2)
    assert decision["reason"].startswith("2000 samples/s come")


def test_of_each_service_the_last_decision_is_known_until_it_is_gone(logged):
    now = SimpleNamespace(s=10.0)
    found = scaling_reasons.Reasons(lambda: now.s)
    found.say(APP, 1, 1, 1, "as before")
    assert found.decisions() == {APP: {"wanted": 1, "runs": 1, "reason": "", "at": 10.0}}
    now.s += 5
    found.say(APP, 1, 3, 3, "much comes")
    now.s += 5
    found.say(APP, 3, 3, 3, "as before")
    assert found.decisions() == {APP: {"wanted": 3, "runs": 3, "reason": "much comes", "at": 15.0}}
    now.s += 100
    assert found.decisions() == {}
    assert reasons(logged) == [f"{APP}: wants 3 replicas, before 1: much comes"]
