"""The account of a run, from records by table."""

import pytest

from eagleray.training.observer import Change, WorkerInfo
from eagleray.workflows.report import Account, sent


def step(number, time, *, samples=640, seconds=1.0, sent=100.0):
    return {
        "kind": "step", "time": time, "step": number, "epoch": 0, "total_steps": 100, "loss": 1.0 / number,
        "learning_rate": 0.1, "num_steps": 10, "num_samples": samples, "seconds": seconds,
        "sent_bytes": sent, "uncompressed_bytes": 2 * sent,
    }  # fmt: skip


def phase(number, time, attempt=1):
    return {"kind": "phase", "name": "training", "time": time, "step": number, "attempt": attempt}


def chosen(number, compressor, reason):
    return {
        "kind": "compression", "time": 1.0, "step": number, "compressor": compressor, "reason": reason,
        "predicted_s": {"none": 0.2, compressor: 0.1}, "measured_s": {},
    }  # fmt: skip


def at(number, time):
    return {"kind": "at", "time": time, "step": number}


def workers(*nodes):
    return [WorkerInfo(rank, node, 100 + rank, "127.0.0.1") for rank, node in enumerate(nodes)]


def formed(number, *nodes, num_before=0, lost=None, time=0.0):
    return Change(number, workers(*nodes), num_before, lost or {}, time)


def test_spans_from_submission_to_the_first_step_add_up():
    account = Account(marks={"submitted_at": 100.0, "submitted": 102.0, "driver": 103.0, "nodes": 109.0})
    account.changed(formed(1, "a", "b", time=115.0))
    account.take(phase(0, 116.0))
    account.take(step(1, 118.0))
    assert account.spans() == {
        "submitted": 2.0, "driver": 1.0, "nodes": 6.0, "workers": 6.0, "group": 1.0, "first step": 2.0,
    }  # fmt: skip
    assert account.to_json()["submit_to_first_step_s"] == 18.0


def test_a_span_that_was_never_reached_is_left_out():
    account = Account(marks={"submitted_at": 100.0, "submitted": 102.0})
    assert account.spans() == {"submitted": 2.0}


def test_a_loss_counts_redone_steps_and_the_pause_from_step_to_step():
    account = Account(attempt=1)
    for record in (phase(0, 0.0), step(1, 1.0), step(60, 6.0), at(68, 6.8)):
        account.take(record)
    account.lost([1], "its process ended")
    assert account.pending is account.recoveries[0]
    account.take(phase(50, 15.0, attempt=2))
    account.take(step(51, 16.8))
    recovery = account.recoveries[0]
    assert account.pending is None
    assert (recovery.lost_step, recovery.resumed_step, recovery.redone_steps) == (68, 50, 18)
    assert recovery.pause_s == pytest.approx(10.0)


def test_what_rank_0_tells_of_the_time_before_a_loss_may_arrive_after_it():
    account = Account(attempt=1)
    account.take(step(60, 6.0))
    account.lost([1], "its process ended")
    account.take(phase(0, 0.0))
    account.take(step(70, 6.5))
    account.take(at(73, 6.8))
    recovery = account.recoveries[0]
    assert (recovery.lost_step, recovery.lost_at, recovery.first_step_at) == (73, 6.8, None)
    account.take(phase(50, 15.0, attempt=2))
    account.take(step(51, 16.8))
    assert (recovery.redone_steps, recovery.pause_s) == (23, pytest.approx(10.0))


def test_a_rank_0_that_was_another_tells_its_whole_story():
    account = Account()
    for record in (phase(0, 0.0), at(30, 3.0), at(73, 7.3)):
        account.take(record)
    account.lost([0], "its process ended", 7.5, num_left=1)
    account.changed(formed(2, "b", num_before=2, lost={0: ()}, time=7.6))
    for record in (at(20, 2.0), at(72, 7.2), phase(73, 7.9, attempt=2)):
        account.take(record)
    (recovery,) = account.recoveries
    assert (recovery.lost_step, recovery.lost_at, recovery.redone_steps) == (73, 7.3, 0)


def test_the_way_back_from_a_loss_has_its_parts():
    account = Account()
    account.changed(formed(1, "a", "b", time=0.0))
    for record in (phase(0, 1.0), at(50, 6.0)):
        account.take(record)
    account.lost([1], "it has hung for 3.0 s", 9.0, num_left=1)
    account.changed(formed(2, "a", num_before=2, time=9.25))
    account.take(phase(50, 9.75, attempt=2))
    account.take(step(51, 9.875))
    found = account.to_json()["recoveries"][0]
    parts = [found[name] for name in ("detect_s", "reschedule_s", "restore_s", "pause_s")]
    assert parts == [3.0, 0.25, 0.5, 3.875]
    assert [(size["time"], size["workers"], size["why"]) for size in account.to_json()["sizes"]] == [
        (0.0, 2, "formed"), (9.0, 1, "lost"), (9.25, 1, "formed"),
    ]  # fmt: skip


def test_a_suspended_run_has_no_workers_and_waits():
    account = Account()
    account.changed(formed(1, "a", "b", time=0.0))
    for record in (phase(0, 1.0), at(40, 5.0)):
        account.take(record)
    account.suspended("digits needs its nodes", 5.5)
    assert account.to_json()["suspensions"][0]["ended_at"] is None
    account.resumed(30.0)
    account.changed(formed(2, "a", time=31.0))
    account.take(phase(40, 32.0, attempt=2))
    found = account.to_json()
    assert found["suspensions"] == [
        {"began_at": 5.5, "ended_at": 30.0, "step": 40, "reason": "digits needs its nodes", "is_saved": True}
    ]
    assert found["goodput"]["lost_s"]["wait"] == 24.5
    assert found["goodput"]["lost_s"]["reschedule"] == 1.5
    course = account.course()
    assert course.sizes == [(0.0, 2), (5.5, 0), (31.0, 1)]
    assert course.suspensions == [(5.5, 30.0)]
    assert (course.began_at, course.ended_at, course.losses, course.resizes) == (0.0, 32.0, [], [])


def test_the_course_of_a_run_tells_losses_from_planned_changes():
    account = Account(marks={"submitted_at": 0.0})
    account.changed(formed(1, "a", "b", time=1.0))
    account.take(phase(0, 2.0))
    account.changed(formed(2, "a", num_before=2, time=5.0))
    account.take(phase(10, 5.5, attempt=2))
    account.lost([0], "gone", 8.0)
    account.changed(formed(3, "a", time=9.0))
    account.take(phase(10, 9.5, attempt=3))
    account.take({"kind": "commit", "time": 11.0, "step": 20, "seconds": 0.5, "blocked_s": 0.1})
    account.ended(12.0)
    course = account.course()
    assert (course.losses, course.resizes, course.commits) == ([8.0], [5.0], [11.0])
    assert (course.began_at, course.ended_at) == (0.0, 12.0)
    assert sum(course.seconds.values()) == pytest.approx(12.0)


def test_sums_and_the_compression_ratio():
    account = Account()
    assert account.compression_ratio == 1.0
    for record in (step(10, 1.0), step(20, 2.0), {"kind": "commit", "time": 2.0, "step": 20, "seconds": 0.5}):
        account.take(record)
    account.take(
        {"kind": "evaluation", "time": 2.0, "step": 20, "part": "validation", "validation_loss": 0.3}
    )
    found = account.to_json()
    assert (found["samples"], found["sent_bytes"], found["compression_ratio"]) == (1280, 200.0, 2.0)
    assert (found["num_commits"], found["commit_seconds"], found["first_loss"]) == (1, 0.5, 0.1)
    assert found["metrics"]["validation_loss"] == 0.3
    assert account.history[-1] == {"step": 20.0, "validation_loss": 0.3}


def test_what_compression_cost_and_chose_is_in_the_report():
    account = Account()
    exchanged = {
        "payload_bytes": 90.0,
        "probe_bytes": 5.0,
        "codec_seconds": 0.2,
        "exchange_seconds": 0.5,
        "skipped_steps": 1,
    }
    account.take(step(10, 1.0) | exchanged)
    account.take(step(20, 2.0) | exchanged)
    account.take(chosen(20, "int8", "auto chose int8"))
    buckets = [{"first_parameter": "w", "sent_bytes": 7}]
    account.take({"kind": "buckets", "time": 3.0, "step": 20, "buckets": buckets})
    for number in (20, 30):
        account.take({"kind": "commit", "time": 3.0, "step": number, "seconds": 0.5, "state_bytes": 8.0})
    found = account.to_json()
    assert (found["payload_bytes"], found["codec_seconds"], found["exchange_seconds"]) == (180.0, 0.4, 1.0)
    assert (found["skipped_steps"], found["probe_bytes"], found["buckets"]) == (2, 10.0, buckets)
    assert found["state_bytes"] == 16.0
    assert found["compression_choices"] == [
        {"step": 20, "compressor": "int8", "reason": "auto chose int8",
         "predicted_s": {"none": 0.2, "int8": 0.1}, "measured_s": {}}
    ]  # fmt: skip


def test_a_step_record_without_a_loss_leaves_the_last_one():
    account = Account()
    record = step(1, 1.0)
    del record["loss"]
    account.take(record)
    assert account.first_loss is None
    account.take(step(10, 2.0))
    account.take({**record, "step": 20})
    assert (account.first_loss, account.latest["loss"]) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("num_sent", "uncompressed", "text"),
    [
        (0, 0, "sent 0.0 MB"),
        (12.34e6, 12.34e6, "sent 12.3 MB"),
        (12.34e6, 12.3e6, "sent 12.3 MB"),
        (1.2e9, 9.4e9, "sent 1.2 GB instead of 9.4 GB"),
        (999.96e6, 2e9, "sent 1.0 GB instead of 2.0 GB"),
    ],
)
def test_sent_in_words(num_sent, uncompressed, text):
    assert sent(num_sent, uncompressed) == text
