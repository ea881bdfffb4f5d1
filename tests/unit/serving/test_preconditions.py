"""What keeps our ingress off a cluster that others started, one message each."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from eagleray import __version__
from eagleray.errors import ClusterError
from eagleray.serving import preconditions
from eagleray.serving.preconditions import NodeFacts, ServeFacts, check_nodes, check_serve
from eagleray.workflows import attach

HEAD = NodeFacts("head", "10.0.0.1", __version__)
OTHER = NodeFacts("other", "10.0.0.2", __version__)
SHARED, SERVER = "s3://bucket/models", "http://10.0.0.1:5000"


@pytest.mark.parametrize(
    ("nodes", "storage", "tracking"),
    [
        ([HEAD], "/home/me/storage", "sqlite:////home/me/mlflow.db"),
        ([HEAD, NodeFacts("second", "10.0.0.1", __version__)], "/home/me/storage", "sqlite:///mlflow.db"),
        ([HEAD, OTHER], SHARED, SERVER),
        ([HEAD, OTHER], "/mnt/nfs", "postgresql://db/mlflow"),
    ],
)
def test_what_is_good_enough(nodes, storage, tracking):
    check_nodes(nodes, storage_url=storage, tracking_uri=tracking)


@pytest.mark.parametrize(
    ("nodes", "tracking", "message"),
    [
        (
            [HEAD, NodeFacts("other", "10.0.0.2", None, "ModuleNotFoundError: No module named 'eagleray'")],
            SERVER,
            f"node other (10.0.0.2): eagleray cannot be imported there (ModuleNotFoundError: No module named "
            f"'eagleray'); install eagleray[platform]=={__version__} on every node",
        ),
        (
            [HEAD, NodeFacts("other", "10.0.0.2", "0.0.7")],
            SERVER,
            f"the nodes do not all have eagleray {__version__}, as is installed here: other has 0.0.7",
        ),
        (
            [HEAD, NodeFacts("other", "10.0.0.2", __version__, sees_storage=False)],
            SERVER,
            "a file written to it is not there on other; every node must read packages",
        ),
        (
            [HEAD, OTHER],
            "sqlite:////me/mlflow.db",
            "is a file of one machine, and the cluster has 2; run `mlflow",
        ),
        ([HEAD, OTHER], "/me/mlruns", "is a file of one machine"),
        ([HEAD, OTHER], "file:///me/mlruns", "is a file of one machine"),
    ],
)
def test_what_is_missing_on_the_nodes(nodes, tracking, message):
    with pytest.raises(ClusterError, match=re.escape(message)):
        check_nodes(nodes, storage_url=SHARED, tracking_uri=tracking)


@pytest.mark.parametrize(
    ("found", "is_in_the_way"),
    [
        (None, False),
        (ServeFacts("127.0.0.1", 9000, "EveryNode"), False),
        (ServeFacts("127.0.0.1", 8000, "Disabled"), False),
        (ServeFacts("127.0.0.1", 8000, "HeadOnly"), True),
        (ServeFacts("0.0.0.0", 8000, "EveryNode"), True),
    ],
)
def test_a_serve_that_runs_already_is_used_but_for_its_port(found, is_in_the_way):
    if not is_in_the_way:
        check_serve(found, port=8000)
        return
    with pytest.raises(ClusterError, match=rf"Serve's proxies .* are at {found.host}:8000, .* --port"):
        check_serve(found, port=8000)


def test_a_cluster_without_a_token_is_warned_of():
    assert preconditions.warning([HEAD, OTHER]) == ""
    said = preconditions.warning([HEAD, replace(OTHER, asks_for_token=False)])
    assert "Ray on other asks for no token" in said
    assert "start Ray with RAY_AUTH_MODE=token" in said
    assert "\n" not in said


@pytest.mark.parametrize(("mode", "asks"), [("token", True), ("disabled", False), (None, False)])
def test_a_node_says_whether_it_asks_for_a_token(monkeypatch, tmp_path, mode, asks):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert attach._looker()(str(tmp_path), "probe")["asks_for_token"] is asks
