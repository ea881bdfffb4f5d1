"""What a run's monitor says, exports and writes; the tracker is a list."""

import dataclasses
import errno
from collections import Counter
from dataclasses import dataclass, field

import pytest

from eagleray.errors import PeerLost, TrainingError
from eagleray.metrics import NullEmitter
from eagleray.packaging import Folder
from eagleray.workflows import monitor as monitor_module
from eagleray.workflows import run_summary
from eagleray.workflows.monitor import RunMonitor, Segments, read_history
from eagleray.workflows.report import Account
from unit.workflows.test_report import at, chosen, formed, phase, step, workers


@dataclass
class Tracked:
    logged: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)
    known_run_id: str | None = "m1"

    def log(self, metrics, step):
        self.logged.append((step, dict(metrics)))

    def tag(self, name, value):
        self.tags[name] = value


@dataclass
class Emitted(NullEmitter):
    gauges: dict = field(default_factory=dict)
    counters: Counter = field(default_factory=Counter)

    def set(self, name, value, labels):
        super().set(name, value, labels)
        more = "".join(f" {labels[key]}" for key in ("cause", "bucket") if key in labels)
        self.gauges[name.removeprefix("eagleray_train_") + more] = value

    def add(self, name, amount, labels):
        self.counters[name.removeprefix("eagleray_train_")] += amount


@pytest.fixture
def said():
    return []


@pytest.fixture
def emitted():
    return Emitted()


@pytest.fixture
def monitor(tmp_path, said, emitted):
    return RunMonitor(
        "r", Folder(str(tmp_path)), Account(), tracker=Tracked(), emitter=emitted, say=said.append,
        node_name=lambda node_id: node_id.upper(),
    )  # fmt: skip


def test_a_recovery_in_words(monitor, said):
    monitor.changed(formed(1, "a", "b"))
    monitor.records([phase(0, 0.0), step(10, 5.0), at(18, 6.0)])
    monitor.failed({0: PeerLost("rank 0: the exchange broke"), 1: _death()}, True)
    monitor.changed(formed(2, "a", "b"))
    monitor.records([phase(10, 14.0, attempt=2), step(11, 16.0)])
    assert "lost rank 1 (node B, pid 101): its process ended; starting the workers again" in said
    assert "going on from step 10; the last step before the loss was 18" in said
    assert "training again after 10.0 s; 8 steps to redo" in said


@pytest.mark.parametrize("error", ["torn", OSError(errno.EIO, "Input/output error")])
def test_a_history_that_cannot_be_read_does_not_end_a_resumed_run(
    monitor, said, tmp_path, monkeypatch, error
):
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / "000001.parquet").write_bytes(b"PAR1 and then nothing")
    if error != "torn":
        monkeypatch.setattr(monitor_module, "read_history", lambda *_: (_ for _ in ()).throw(error))
    monitor.changed(formed(2, "a"))
    monitor.records([phase(40, 1.0, attempt=2), step(60, 3.0)])
    (line,) = [line for line in said if "cannot be read" in line]
    assert line.startswith(
        f"the history in {monitor._folder.url} cannot be read, steps to redo count as new: "
    )
    assert (monitor.account.step, monitor.account.time.reached) == (60, 60)


def test_a_loss_that_the_others_survive_is_said_and_counted(monitor, said):
    monitor.changed(formed(1, "a", "b", "c"))
    monitor.records([phase(0, 0.0), step(10, 5.0), at(18, 6.0)])
    lost = {1: (workers("a", "b")[1], "its process ended")}
    monitor.changed(formed(2, "a", "c", num_before=3, lost=lost))
    owed = {"kind": "lost", "time": 6.4, "num_ranks": 1, "share": 1 / 3, "norm": 0.25}
    monitor.records([owed, phase(18, 6.5, attempt=2), step(20, 7.0)])
    assert "lost rank 1 (node B, pid 101): its process ended; the others go on with what they hold" in said
    assert "attempt 2: 3 -> 2 workers on 2 nodes" in said
    assert "training again after 1.0 s; 0 steps to redo" in said
    (lost,) = monitor.account.to_json()["recoveries"]
    assert (lost["ranks"], lost["nodes"], lost["redone_steps"]) == ([1], ["B"], 0)
    assert (lost["owed_share"], lost["owed_norm"]) == (1 / 3, 0.25)
    assert monitor._emitter.counters["lost_residuals_total"] == 1
    assert run_summary._way_back(lost, is_last=True) == (
        "training again after 1.0 s, 0 steps redone, 33 % of what compression owed lost"
    )


def test_another_size_is_no_loss(monitor, said):
    monitor.changed(formed(1, "a"))
    monitor.records([phase(0, 0.0), step(10, 5.0)])
    monitor.changed(formed(2, "a", "b", num_before=1))
    assert "attempt 2: 1 -> 2 workers on 2 nodes" in said
    assert monitor.account.recoveries == []


def test_a_start_that_failed_is_no_loss_of_the_run(monitor, said):
    monitor.failed({-1: PeerLost("a worker was lost while the workers started: its node is gone")}, True)
    assert said == [
        "a worker was lost while the workers started: its node is gone; starting the workers again"
    ]
    assert monitor.account.recoveries == []
    monitor.failed({-1: TrainingError("workers ended while they started, 5 times: killed")}, False)
    assert said[-1] == "the run failed after step 0: workers ended while they started, 5 times: killed"


def test_what_a_lost_attempt_tells_late_is_not_the_way_back(monitor, said):
    monitor.changed(formed(1, "a", "b"))
    monitor.failed({1: _death()}, True)
    monitor.records([phase(0, 1.0)])
    assert said[-1].startswith("lost rank 1")
    monitor.changed(formed(2, "a", "b"))
    monitor.records([phase(0, 9.0, attempt=2)])
    assert said[-1] == "going on from step 0; the last step before the loss was 0"


def test_a_resumed_run_says_from_where_it_goes_on(monitor, said):
    monitor.changed(formed(3, "a"))
    monitor.records([phase(150, 1.0, attempt=3)])
    assert said[-1] == "going on from step 150"


def test_a_new_run_says_nothing_of_checkpoints(monitor, said):
    monitor.changed(formed(1, "a"))
    monitor.records([phase(0, 1.0)])
    assert said[-1] == "  rank 0: node A, pid 100"


def test_a_final_error_of_ours_is_one_line(monitor, said):
    monitor.changed(formed(1, "a"))
    monitor.failed({0: TrainingError("step 3: the gradient of w is not finite")}, False)
    assert said[-1] == "rank 0 (node A, pid 100) failed after step 0: step 3: the gradient of w is not finite"


def test_an_error_of_the_users_code_comes_with_its_traceback(monitor, said):
    error = KeyError("width")
    error.add_note("Traceback (most recent call last):\n  my_net.py, line 3")
    monitor.changed(formed(1, "a"))
    monitor.failed({0: error}, False)
    assert "  my_net.py, line 3" in said
    assert said[-1].endswith("KeyError: 'width'")


def test_progress_lines_are_rare_but_the_last_step_is_always_said(monitor, said):
    monitor.changed(formed(1, "a", "b"))
    monitor.records([step(10 * number, 100 + 0.1 * number) for number in range(1, 11)])
    lines = [line for line in said if line.startswith("step ")]
    assert len(lines) == 2
    assert lines[-1].startswith("step 100/100 (100 %)  epoch 1  loss 0.0100  640 samples/s  ETA 0:00")
    assert lines[-1].endswith("2 workers on 2 nodes  sent 0.0 MB instead of 0.0 MB")


def test_what_a_checkpoint_sends_is_exported(monitor, emitted):
    monitor.changed(formed(1, "a", "b"))
    for number in (10, 20):
        commit = {"kind": "commit", "time": 1.0, "step": number, "seconds": 0.5, "state_bytes": 4e6}
        monitor.records([commit])
    assert emitted.counters["state_bytes_total"] == 8e6
    assert monitor.tracker.logged[-1][1] == {"state_mb": 8.0}


def test_how_the_gradients_went_is_exported(monitor, emitted):
    monitor.changed(formed(1, "a", "b"))
    exchanged = {
        "payload_bytes": 90.0,
        "probe_bytes": 7.0,
        "codec_seconds": 0.25,
        "exchange_seconds": 0.5,
        "relative_error": 0.3,
        "skipped_steps": 2,
    }
    for number in (10, 20):
        monitor.records([step(number, number, seconds=2.0) | exchanged])
    assert emitted.gauges["relative_error"] == 0.3
    assert emitted.gauges["link_bytes_per_second"] == 25, "100 bytes of 2 ranks in 2 s"
    assert emitted.counters["sent_bytes_total"] == 200
    assert emitted.counters["payload_bytes_total"] == 180
    assert emitted.counters["uncompressed_bytes_total"] == 400
    assert emitted.counters["probe_bytes_total"] == 14
    assert emitted.counters["codec_seconds_total"] == 0.5
    assert emitted.counters["exchange_seconds_total"] == 1
    assert emitted.counters["skipped_steps_total"] == 4
    assert monitor.tracker.logged[-1][1].items() >= {
        "compression_ratio": 2.0, "sent_mb": 2e-4, "payload_mb": 1.8e-4, "probe_mb": 1.4e-5,
        "relative_error": 0.3,
        "codec_seconds": 0.5, "exchange_seconds": 1.0, "skipped_steps": 4, "link_bytes_per_second": 25.0,
    }.items()  # fmt: skip


def bucket(first, *, error=None, sent=100):
    """Of four steps."""
    return {
        "first_parameter": first, "num_parameters": 2, "relative_error": error, "ratio": 4.0,
        "num_exchanges": 4, "sent_bytes": 4 * sent, "payload_bytes": 3 * sent,
        "uncompressed_bytes": 16 * sent, "codec_seconds": 2.0, "exchange_seconds": 1.0,
    }  # fmt: skip


def test_what_was_done_with_each_bucket_is_exported(monitor, emitted):
    monitor.changed(formed(1, "a", "b"))
    monitor.records([step(10, 1.0, seconds=5.0)])  # ten steps
    told = [bucket("a", error=0.25), bucket("b", sent=0)]
    monitor.records([{"kind": "buckets", "time": 2.0, "step": 10, "buckets": told}])
    gauges = {name: value for name, value in emitted.gauges.items() if name.startswith("bucket_")}
    assert gauges == {
        "bucket_sent_bytes 0": 100, "bucket_payload_bytes 0": 75, "bucket_ratio 0": 4,
        "bucket_relative_error 0": 0.25, "bucket_codec_seconds 0": 0.5, "bucket_exchange_seconds 0": 0.25,
        "bucket_link_bytes_per_second 0": 200,
        "bucket_sent_bytes 1": 0, "bucket_payload_bytes 1": 0, "bucket_ratio 1": 1,
        "bucket_codec_seconds 1": 0.5, "bucket_exchange_seconds 1": 0.25, "bucket_link_bytes_per_second 1": 0,
    }  # fmt: skip
    logged = dict(item for at, values in monitor.tracker.logged if at == 10 for item in values.items())
    assert logged.items() >= {"bucket_0_ratio": 4.0, "bucket_1_sent_bytes": 0.0}.items()


def test_a_model_of_many_buckets_has_no_more_labels_than_one_of_some(monitor, emitted):
    many = [bucket(str(index), error=index / 100) for index in range(200)]
    monitor.records([{"kind": "buckets", "time": 2.0, "step": 10, "buckets": many}])
    named = {name.split()[1] for name in emitted.gauges if name.startswith("bucket_")}
    assert named == {*map(str, range(16)), "rest"}
    assert emitted.gauges["bucket_sent_bytes rest"] == 184 * 100
    assert emitted.gauges["bucket_ratio rest"] == 4
    assert emitted.gauges["bucket_relative_error rest"] == 1.99


def test_where_the_time_goes_is_exported(monitor, emitted):
    monitor.account.marks = {"submitted_at": 0.0, "nodes": 1.0}
    monitor.changed(formed(1, "a", "b", time=3.0))
    monitor.records([phase(0, 4.0), step(10, 9.0), at(18, 14.0)])
    lost = {1: (workers("a", "b")[1], "its process ended")}
    change = dataclasses.replace(formed(2, "a", num_before=2, lost=lost, time=16.0), left_at=15.0)
    monitor.changed(change)
    monitor.records([phase(18, 16.5, attempt=2), at(20, 20.0)])
    gauges = emitted.gauges
    assert gauges["eagleray_goodput_ratio"] == 13.5 / 20
    lost_s = {name: seconds for name, seconds in gauges.items() if name.startswith("eagleray_lost_seconds")}
    assert lost_s == {
        f"eagleray_lost_seconds {cause}": seconds
        for cause, seconds in {
            "start": 3.0, "wait": 1.0, "detect": 1.0, "reschedule": 1.0, "restore": 0.5, "redo": 0.0,
            "checkpoint": 0.0,
        }.items()
    }  # fmt: skip
    (recovery,) = monitor.account.to_json()["recoveries"]
    assert (recovery["detect_s"], recovery["reschedule_s"], recovery["restore_s"]) == (1.0, 1.0, 0.5)


def test_steps_that_an_earlier_driver_took_are_no_goodput(monitor, tmp_path):
    earlier = Segments(Folder(str(tmp_path)))
    earlier.add([{"step": 40.0, "loss": 1.0}, {"step": 60.0, "loss": 1.0}], is_last=True)
    monitor.changed(formed(3, "a", time=0.0))
    monitor.records([phase(50, 0.0, attempt=3), at(70, 10.0)])
    assert monitor.account.goodput().lost_s["redo"] == 5.0


def test_a_choice_is_said_and_in_mlflow(monitor, said):
    monitor.records(
        [chosen(40, "int8", "auto chose int8: 3 times as fast as none"), chosen(80, "bf16", "later")]
    )
    assert said == ["auto chose int8: 3 times as fast as none", "later"]
    assert monitor.tracker.tags == {"eagleray.compression": "bf16", "eagleray.compression.reason": "later"}


def test_a_report_without_a_step_taken_has_no_loss(monitor, said, emitted):
    monitor.changed(formed(1, "a"))
    record = step(100, 200.0)
    del record["loss"]
    monitor.records([record])
    assert "step 100/100 (100 %)  epoch 1  no step taken" in said[-1]
    assert "loss" not in emitted.gauges
    assert "loss" not in monitor.account.latest


def test_a_worker_alone_says_nothing_of_bytes(monitor, said):
    monitor.changed(formed(1, "a"))
    monitor.records([step(100, 1.0, sent=0.0)])
    assert said[-1].endswith("1 worker on 1 node")


def test_history_is_written_in_segments_and_read_back(monitor, tmp_path):
    monitor.records([step(10, 1.0), {"kind": "evaluation", "time": 1, "step": 10, "validation_loss": 0.5}])
    monitor.close()
    history = read_history(Folder(str(tmp_path)))
    assert [row["step"] for row in history] == [10.0, 10.0]
    assert history[0]["loss"] == 0.1
    assert "loss" not in history[1]
    assert Folder(str(tmp_path)).read_json("mlflow.json") == {"run_id": "m1"}
    assert monitor.tracker.logged[-1] == (10, {"validation_loss": 0.5})


def test_a_full_disk_is_said_once_and_its_rows_are_in_the_next_segment(monitor, tmp_path, said, monkeypatch):
    def full(folder, name, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(monitor_module, "SEGMENT_EVERY_S", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write_bytes", full)
        patched.setattr(Folder, "write_json", full)
        monitor.changed(formed(1, "a"))
        monitor.records([step(10, 1.0)])
        monitor.records([step(20, 2.0)])
    (trouble,) = [line for line in said if "No space left on device" in line]
    assert "training goes on" in trouble
    monitor.records([step(30, 3.0)])
    assert [row["step"] for row in read_history(Folder(str(tmp_path)))] == [10.0, 20.0, 30.0]
    assert Folder(str(tmp_path)).read_json("mlflow.json") == {"run_id": "m1"}


def _death():
    from ray.exceptions import ActorDiedError

    return ActorDiedError()
