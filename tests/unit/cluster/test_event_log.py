"""Segments of the event log: written once, numbered, fenced; storage that refuses costs no event."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from eagleray.capacity import Event
from eagleray.cluster import event_log, processes
from eagleray.cluster.event_log import EventLog, read, url_of
from eagleray.errors import InputError
from eagleray.packaging import Folder

SESSION = "session_2026-01-01_00-00-00_000001_1234"


def event(number: int, time_s: float | None = None) -> Event:
    return Event(float(number) if time_s is None else time_s, "open", f"claim-{number}", "run", "batch", "")


def opened(storage, session: str = SESSION, **more) -> EventLog:
    return EventLog(str(storage), "tests", session, **{"every_s": 0.01, "retry_s": 0.01, **more})


def until(condition) -> None:
    assert processes.wait_until(condition, timeout_s=20)


def segments(storage) -> list[dict]:
    """The headers, with the number of events behind each."""
    found = []
    for path in sorted(Path(url_of(str(storage), "tests")).glob("segment-*")):
        header, *events = [json.loads(line) for line in path.read_text().splitlines()]
        found.append({**header, "events": len(events)})
    return found


def test_events_come_back_in_order_and_each_ledger_has_an_epoch(tmp_path):
    first = opened(tmp_path)
    first.nodes = {"0a1b": {"name": "n1", "type": "cpu_worker"}}
    first.append(event(number) for number in range(600))
    first.close()
    second = opened(tmp_path)
    second.append([event(600)])
    second.close()
    assert (first.epoch, second.epoch) == (1, 2)
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == [
        f"claim-{n}" for n in range(601)
    ]
    found = segments(tmp_path)
    assert [segment["segment"] for segment in found] == list(range(1, len(found) + 1))
    assert [segment["epoch"] for segment in found if not segment["events"]] == [1, 2]
    assert max(segment["events"] for segment in found) <= event_log.MOST_EVENTS
    keys = {"schema", "epoch", "cluster", "session", "segment", "started_s", "closed_s", "dropped", "nodes"}
    assert set(found[0]) == keys | {"events"}
    assert found[1]["nodes"] == {"0a1b": {"name": "n1", "type": "cpu_worker"}}
    assert (found[0]["schema"], found[0]["cluster"], found[0]["session"]) == (1, "tests", SESSION)


def test_a_segment_is_closed_after_a_second_without_its_being_full(tmp_path):
    log = opened(tmp_path)
    log.append([event(1)])
    until(lambda: any(segment["events"] == 1 for segment in segments(tmp_path)))
    log.close()


def test_a_reader_begins_where_it_is_told_to(tmp_path):
    now_s = [0.0]
    log = opened(tmp_path, now=lambda: now_s[0])
    for number in range(1, 6):
        until(lambda: log.epoch is not None)
        now_s[0] = number + 0.5
        log.append([event(number)])
        until(lambda number=number: sum(found["events"] for found in segments(tmp_path)) == number)
    log.close()
    url = url_of(str(tmp_path), "tests")
    assert [found.claim for found in read(url, since_s=3.0)] == ["claim-3", "claim-4", "claim-5"]
    assert list(read(url, since_s=9.0)) == []
    assert list(read(url_of(str(tmp_path), "nobody"))) == []


def test_an_older_ledger_is_fenced_by_a_newer_one(tmp_path, caplog):
    older, newer = opened(tmp_path), opened(tmp_path)
    until(lambda: {older.epoch, newer.epoch} == {1, 2})
    if older.epoch == 2:
        older, newer = newer, older
    older.append([event(1)])
    newer.append([event(2)])
    until(lambda: older.fenced)
    assert "a newer ledger of this cluster (epoch 2) writes" in older.fenced
    assert "this one (epoch 1) decides no more" in older.fenced
    newer.close()
    older.close()
    assert not newer.fenced
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == ["claim-2"]


def test_an_older_ledger_with_nothing_to_write_looks_around(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "_LOOK_EVERY_S", 0.01)
    older = opened(tmp_path)
    until(lambda: older.epoch is not None)
    newer = opened(tmp_path)
    until(lambda: older.fenced)
    newer.close()


def test_two_clusters_of_one_name_do_not_fence_each_other(tmp_path, caplog):
    one = opened(tmp_path)
    until(lambda: one.epoch is not None)
    other = opened(tmp_path, "session_2026-01-01_00-00-00_000001_5678")
    until(lambda: other.epoch is not None)
    with caplog.at_level(logging.WARNING):
        one.append([event(1)])
        until(lambda: list(read(url_of(str(tmp_path), "tests.001_1234"))))
    assert "another cluster called 'tests' writes its events to" in caplog.text
    other.append([event(2)])
    one.close()
    other.close()
    assert (one.fenced, other.fenced) == ("", "")
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == ["claim-2"]


def test_a_cluster_that_is_started_again_goes_on_with_the_log_of_its_name(tmp_path):
    first = opened(tmp_path)
    first.append([event(1)])
    first.close()
    second = opened(tmp_path, "another session")
    second.append([event(2)])
    second.close()
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == ["claim-1", "claim-2"]


def holds(claim: str, time_s: float, cpus: int, kind="grant") -> Event:
    held = {"n": {"CPU": float(cpus)}} if cpus else {}
    return Event(time_s, kind, claim, f"run {claim}", "training_share", "", cpus, held, held, cpus)


def written(storage, session: str, started_s: float, *events: Event) -> None:
    """By a ledger that ends then."""
    log = opened(storage, session, now=lambda: started_s)
    log.append(events)
    log.close()


def ends(storage, since_s: float = 0.0) -> list[tuple[float, str, str]]:
    found = list(read(url_of(str(storage), "tests"), since_s=since_s))
    assert [event.time_s for event in found] == sorted(event.time_s for event in found)
    last = {event.claim: event for event in found}
    return [(event.time_s, event.kind, event.claim) for event in last.values()]


def test_what_was_held_when_a_cluster_ended_is_not_held_in_the_next_of_its_name(tmp_path):
    notice = replace(holds("x", 110.0, 3, "notice"), size=1, units=2)
    written(tmp_path, "s1", 100.0, holds("x", 101.0, 3), holds("y", 102.0, 1), notice, holds("y", 111.0, 0))
    assert ends(tmp_path) == [(110.0, "notice", "x"), (111.0, "grant", "y")], "its cluster may go on"
    written(tmp_path, "s2", 200.0, holds("z", 201.0, 1))
    assert ends(tmp_path) == [(200.0, "close", "x"), (111.0, "grant", "y"), (201.0, "grant", "z")]
    [closed] = [event for event in read(url_of(str(tmp_path), "tests")) if event.kind == "close"]
    assert (closed.units, closed.resources, closed.held, closed.size) == (3, {"n": {"CPU": 3.0}}, {}, 0)
    assert closed.reason == "its ledger ended, and it did not go on with the next"
    assert ends(tmp_path, since_s=199.5) == [(201.0, "grant", "z")]
    written(tmp_path, "s3", 300.0)
    assert ends(tmp_path)[2] == (300.0, "close", "z"), "also where nothing comes after it"


def test_a_claim_whose_holder_ended_while_the_ledger_was_away_has_an_end(tmp_path):
    written(tmp_path, "s1", 100.0, holds("goes on", 101.0, 1), holds("is dead", 101.0, 2))
    written(tmp_path, "s1", 200.0, holds("goes on", 202.0, 1, "open"), holds("new", 204.0, 1))
    assert ends(tmp_path) == [
        (202.0, "open", "goes on"),
        (203.0, "close", "is dead"),
        (204.0, "grant", "new"),
    ]
    written(tmp_path, "s1", 1e12)
    assert {kind for _, kind, _ in ends(tmp_path)} == {"open", "close", "grant"}, "it has just begun"


def test_storage_that_refuses_costs_no_event(tmp_path, monkeypatch, caplog):
    create, is_full = Folder.create, [True]

    def full(self, name, data):
        if is_full[0]:
            raise OSError(28, "No space left on device")
        return create(self, name, data)

    monkeypatch.setattr(Folder, "create", full)
    with caplog.at_level(logging.WARNING):
        log = opened(tmp_path)
        log.append([event(1)])
        until(lambda: log.trouble)
        assert "cannot be written (OSError: [Errno 28] No space left on device)" in log.trouble
        assert "events are kept in memory, and it is tried again" in log.trouble
        log.append([event(2)])
        is_full[0] = False
        until(lambda: not log.trouble)
    assert caplog.text.count("No space left") == 1, "said once"
    log.close()
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == ["claim-1", "claim-2"]


def test_memory_is_bounded_and_the_loss_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "_MOST_KEPT", 3)
    create, is_full = Folder.create, [True]

    def full(self, name, data):
        if is_full[0]:
            raise OSError(28, "No space left on device")
        return create(self, name, data)

    monkeypatch.setattr(Folder, "create", full)
    log = opened(tmp_path)
    log.append(event(number) for number in range(5))
    is_full[0] = False
    log.close()
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == [
        "claim-2",
        "claim-3",
        "claim-4",
    ]
    assert sum(segment["dropped"] for segment in segments(tmp_path) if segment["events"]) == 2


def test_a_write_whose_answer_was_lost_is_no_other_ledger(tmp_path, monkeypatch):
    create, has_lost = Folder.create, []

    def lossy(self, name, data):
        found = create(self, name, data)
        if data.count(b"\n") > 1 and not has_lost:
            has_lost.append(name)
            log.append([event(2)])  # between the two attempts
            raise OSError(110, "Connection timed out")
        return found

    monkeypatch.setattr(Folder, "create", lossy)
    log = opened(tmp_path)
    log.append([event(1)])
    until(lambda: has_lost and not log.trouble)
    log.close()
    assert not log.fenced
    assert [found.claim for found in read(url_of(str(tmp_path), "tests"))] == ["claim-1", "claim-2"]


def test_what_the_limit_drops_during_a_write_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "_MOST_KEPT", 3)
    create, is_first = Folder.create, [True]

    def slow(self, name, data):
        if data.count(b"\n") > 1 and is_first[0]:
            is_first[0] = False
            log.append(event(number) for number in range(2, 7))
        return create(self, name, data)

    monkeypatch.setattr(Folder, "create", slow)
    log = opened(tmp_path)
    log.append([event(1)])
    until(lambda: sum(found["events"] for found in segments(tmp_path)) == 4)
    log.close()
    claims = [found.claim for found in read(url_of(str(tmp_path), "tests"))]
    assert claims == ["claim-1", "claim-4", "claim-5", "claim-6"]
    assert [found["dropped"] for found in segments(tmp_path) if found["events"]] == [0, 2]


def test_a_log_whose_last_segment_is_damaged_goes_on(tmp_path, caplog):
    first = opened(tmp_path)
    until(lambda: first.epoch is not None)
    first.close()
    folder = Path(url_of(str(tmp_path), "tests"))
    (folder / "segment-0000000002.jsonl").write_text("")
    second = opened(tmp_path)
    until(lambda: second.epoch is not None)
    second.append([event(1)])
    second.close()
    assert (second.epoch, second.trouble) == (3, ""), "the damaged one may have had epoch 2"
    assert "segment-0000000002.jsonl is no segment of an event log" in caplog.text
    (folder / "segment-0000000002.jsonl").unlink()
    assert [found["epoch"] for found in segments(tmp_path)] == [1, 3, 3]


def test_a_next_segment_that_is_damaged_is_named_and_left_behind(tmp_path, caplog):
    log = opened(tmp_path)
    until(lambda: log.epoch is not None)
    folder = Path(url_of(str(tmp_path), "tests"))
    (folder / "segment-0000000002.jsonl").write_text('{"schema":1,"ep')
    with caplog.at_level(logging.WARNING):
        log.append([event(1)])
        until(lambda: log.epoch == 3 and not log.trouble)
    assert "segment-0000000002.jsonl is no segment of an event log" in caplog.text
    assert "segment 3 goes on, as epoch 3" in caplog.text
    log.append([event(2)])
    log.close()
    assert not log.fenced
    (folder / "segment-0000000002.jsonl").unlink()
    assert [found.claim for found in read(str(folder))] == ["claim-1", "claim-2"]
    assert [found["epoch"] for found in segments(tmp_path)][:3] == [1, 3, 3]


def test_a_damaged_segment_of_a_newer_ledger_that_goes_on_fences_the_older_one(tmp_path):
    older = opened(tmp_path)
    until(lambda: older.epoch == 1)
    folder = Path(url_of(str(tmp_path), "tests"))
    (folder / "segment-0000000002.jsonl").write_text("")
    newer = opened(tmp_path)
    until(lambda: newer.epoch is not None)
    older.append([event(1)])
    until(lambda: older.fenced)
    newer.close()
    assert (older.epoch, newer.epoch, newer.fenced) == (1, 3, "")


def test_a_next_segment_of_another_schema_is_left_to_who_writes_it(tmp_path):
    log = opened(tmp_path)
    until(lambda: log.epoch is not None)
    path = Path(url_of(str(tmp_path), "tests")) / "segment-0000000002.jsonl"
    path.write_text('{"epoch":2,"session":"s","segment":2,"closed_s":1,"schema":9}\n')
    log.append([event(1)])
    until(lambda: "is of schema 9; this version reads schema 1" in log.trouble)
    log.close()
    assert [found["segment"] for found in segments(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json\n", "is no segment of an event log"),
        ("", "is no segment of an event log"),
        (
            '{"epoch":1,"session":"s","segment":1,"closed_s":1,"schema":9}\n',
            "is of schema 9; this version reads",
        ),
    ],
)
def test_a_damaged_segment_is_named(tmp_path, content, message):
    folder = Path(url_of(str(tmp_path), "tests"))
    os.makedirs(folder)
    (folder / "segment-0000000001.jsonl").write_text(content)
    with pytest.raises(InputError, match=rf"segment-0000000001\.jsonl {message}"):
        list(read(str(folder)))
