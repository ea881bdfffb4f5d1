"""In which order the observer of a run hears of it; Ray is played."""

import threading
from types import SimpleNamespace

from eagleray.training import trainer_ray260
from eagleray.training.observer import Change
from eagleray.training.trainer_ray260 import Watch


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
    monkeypatch.setattr(trainer_ray260, "ray", played)
    watch = Watch(observer, membership)  # type: ignore[arg-type]
    watch.after_worker_group_poll_status(None)
    watch.note(Change(2, [], 0, {}, 1.0))
    watch.after_worker_group_poll_status(None)
    assert heard == ["formation 2", ["phase"]]
