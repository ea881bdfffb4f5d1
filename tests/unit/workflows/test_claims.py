"""What `status` shows of the ledger's claims where there is no ingress to ask."""

from __future__ import annotations

import socket

import pytest

from eagleray.cluster import state
from eagleray.workflows import claims


def test_a_cluster_that_does_not_answer_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr(state, "environment", lambda _cluster: {"RAY_ADDRESS": address})
        found = claims.of_cluster(None)
    assert found.trouble.startswith(f"no cluster answers at RAY_ADDRESS {address}")
    assert (claims.rows(found), list(claims.sentences(found))) == ([], [])


def test_a_process_that_fails_is_told_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "environment", lambda _cluster: {"PYTHONHOME": "/nonexistent"})
    found = claims.of_cluster(None)
    assert found.trouble.startswith("the cluster cannot be asked: ")
