"""In which order the observer of a run hears of it; Ray is played."""

import threading
from types import SimpleNamespace

from eagleray.training import watch_ray260
from eagleray.training.observer import Change
from eagleray.training.watch_ray260 import Watch


def test_a_formation_is_told_before_what_its_rank_0_says(monkeypatch):
    heard = []
    observer = SimpleNamespace(
        changed=lambda change: heard.append(f"formation {change.number}"),
        records=lambda records: heard.append([record["kind"] for record in records]),
    )
    rank_0 = SimpleNamespace(execute_async=lambda drain: [{"kind": "phase", "step": 0}])
    membership = SimpleNamespace(lock=threading.Lock(), members=[SimpleNamespace(worker=rank_0)])
    played = SimpleNamespace(
        wait=lambda references, timeout: (references, []), get=lambda answer, timeout: answer
    )
    monkeypatch.setattr(watch_ray260, "ray", played)
    watch = Watch(observer, membership)  # type: ignore[arg-type]
    watch.after_worker_group_poll_status(None)
    watch.note(Change(2, [], 0, {}, 1.0))
    watch.after_worker_group_poll_status(None)
    assert heard == ["formation 2", ["phase"]]


def test_last_words_come_after_what_was_told_before_and_before_the_next_formation(monkeypatch):
    heard = []
    observer = SimpleNamespace(
        changed=lambda change: heard.append(f"formation {change.number}"),
        records=lambda records: heard.extend((record["kind"], record["step"]) for record in records),
    )
    answers = [[{"kind": "step", "step": 20}], [{"kind": "commit", "step": 25}, {"kind": "step", "step": 25}]]
    rank_0 = SimpleNamespace(execute_async=lambda drain: answers.pop(0))
    membership = SimpleNamespace(lock=threading.Lock(), members=[SimpleNamespace(worker=rank_0)])
    played = SimpleNamespace(wait=lambda *_, **__: ([], []), get=lambda answer, timeout: answer)
    monkeypatch.setattr(watch_ray260, "ray", played)
    watch = Watch(observer, membership)  # type: ignore[arg-type]
    watch.after_worker_group_poll_status(None)
    watch.part(rank_0)  # type: ignore[arg-type]
    watch.note(Change(2, [], 2, {}, 1.0))
    membership.members = []
    watch.after_worker_group_poll_status(None)
    assert heard == [("step", 20), ("commit", 25), ("step", 25), "formation 2"]


def test_what_the_new_rank_0_tells_again_counts_once(monkeypatch):
    heard = []
    observer = SimpleNamespace(records=lambda records: heard.extend(record["step"] for record in records))
    answers = [
        [{"kind": "step", "step": 20}],
        [{"kind": "step", "step": 20}, {"kind": "step", "step": 40}],
        [],
    ]
    worker = SimpleNamespace(execute_async=lambda drain: answers.pop(0))
    membership = SimpleNamespace(lock=threading.Lock(), members=[])
    played = SimpleNamespace(
        wait=lambda references, timeout: (references, []), get=lambda answer, timeout: answer
    )
    monkeypatch.setattr(watch_ray260, "ray", played)
    watch = Watch(observer, membership)  # type: ignore[arg-type]
    watch.part(worker)  # type: ignore[arg-type]
    watch.after_worker_group_poll_status(None)
    membership.members = [SimpleNamespace(worker=worker)]
    watch.after_worker_group_poll_status(None)
    watch.after_worker_group_poll_status(None)
    assert heard == [20, 40]
