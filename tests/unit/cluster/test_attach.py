"""What an `attach` that fails leaves behind."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from eagleray.cluster import attached
from eagleray.cluster.names import LEDGER
from eagleray.errors import ServiceError
from eagleray.workflows import attach as module


@pytest.mark.parametrize("failing", ["ledger.start", "start.start", "_await_start"])
def test_what_was_started_before_it_failed_can_be_taken_down(tmp_path, monkeypatch, failing):
    def fail(*_: object) -> None:
        raise ServiceError("it did not start")

    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    played = {
        "joined": lambda *_: nullcontext(),
        "start.find": lambda: None,
        "_facts": lambda _url: [],
        "preconditions.check_nodes": lambda *_, **__: None,
        "preconditions.warning": lambda _nodes: "",
        "_serve": lambda: None,
        "preconditions.check_serve": lambda *_, **__: None,
        "_head_address": lambda: "10.0.0.1",
        "ledger.start": lambda _wanted: LEDGER,
        "start.start": lambda _wanted: "the controller",
        "start.directory_on_head": lambda _name: "/tmp",
        "_await_start": lambda _controller: None,
        failing: fail,
    }
    for name, does in played.items():
        monkeypatch.setattr(f"{module.__name__}.{name}", does)
    with pytest.raises(ServiceError, match="it did not start"):
        module.attach("10.0.0.1:6379", "theirs", say=lambda _line: None)
    found = attached.read("theirs")
    assert found is not None
    assert (found.address, found.ingress_url) == ("10.0.0.1:6379", "http://127.0.0.1:8000")
