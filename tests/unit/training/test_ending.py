"""The end of a worker's process; Ray is played."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from eagleray.training import ending_ray260
from support.pretend_ledger import until


def test_nobody_waits_for_the_gcs_where_a_worker_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    is_back, killed = threading.Event(), []

    def kill(actor: str) -> None:
        assert is_back.wait(20)
        killed.append(actor)

    task = SimpleNamespace(remote=killed.append)
    played = SimpleNamespace(
        kill=kill, remote=lambda **_: lambda _: SimpleNamespace(options=lambda **_: task)
    )
    monkeypatch.setattr(ending_ray260, "ray", played)
    monkeypatch.setattr(ending_ray260, "NodeAffinitySchedulingStrategy", lambda *_, **__: None)
    ending_ray260.end_process("actor", "node", 7)
    assert killed == []
    is_back.set()
    until(lambda: killed == ["actor", 7])
