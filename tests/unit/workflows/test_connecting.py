"""A driver without a cluster says so; it neither waits for minutes nor starts one of Ray's own."""

import socket

import pytest

from eagleray.errors import ClusterNotRunning
from eagleray.workflows.connecting import connect


def test_a_dead_address_is_said_at_once(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterNotRunning, match=rf"answers at RAY_ADDRESS {address} .*eagleray env"):
        connect()
