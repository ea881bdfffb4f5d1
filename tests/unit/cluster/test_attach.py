"""What an `attach` that fails leaves behind."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from eagleray.cluster import attached
from eagleray.cluster.names import LEDGER, ON_HEAD
from eagleray.errors import ClusterError, InputError, ServiceError
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
        "_address": lambda _labels: "10.0.0.1",
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


def test_gateways_on_other_nodes_are_where_their_labels_say(monkeypatch):
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": dict(ON_HEAD), "Labels": {}},
        {"Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {}, "Labels": {"pool": "serve"}},
        {"Alive": False, "NodeManagerAddress": "10.0.0.3", "Resources": {}, "Labels": {"pool": "edge"}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert module._address({}) == "10.0.0.1"
    assert module._address({"pool": "serve"}) == "10.0.0.2"
    with pytest.raises(ClusterError, match="no node of this cluster has the labels for gateways, pool=edge"):
        module._address({"pool": "edge"})
    with pytest.raises(InputError, match=r"need a host that each has: 0\.0\.0\.0"):
        module.attach("10.0.0.1:6379", "theirs", gateway_labels={"pool": "serve"})
