"""`up`, `down`, `status` and serving, without a cluster: names, ports, what is kept and what goes."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from eagleray.cluster import attached, files, local, node_types, preparation, processes, settings, state
from eagleray.errors import ClusterError, ClusterNotRunning, InputError, SpecError
from eagleray.serving import start
from eagleray.serving.control_settings import ControllerSettings
from eagleray.specs import LocalSpec, load
from eagleray.specs.local import LocalServing
from eagleray.workflows import attach, down, status, up

LOCAL = Path(__file__).parents[3] / "local.toml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own; what is prepared in it goes with its runtime folder, which lies elsewhere."""
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for cluster in filter(None, map(state.read, state.names())):
        files.remove_tree(cluster.runtime_dir)


def prepared(*overrides: str) -> state.ClusterState:
    spec = load(LocalSpec, LOCAL, overrides)
    return preparation.prepare("one", spec, node_types.read_types(spec), {})


def test_the_ingress_has_a_port_of_its_own():
    cluster = prepared()
    try:
        assert cluster.ingress_url == f"http://127.0.0.1:{cluster.ports['ingress']}"
        assert state.read("one") == cluster
        assert len(set(cluster.ports.values())) == len(cluster.ports)
    finally:
        local.down("one", say=lambda _: None)


def test_without_serving_there_is_no_ingress():
    cluster = prepared("serving.enabled=false")
    try:
        assert cluster.ingress_url is None
        assert "ingress" not in cluster.ports
    finally:
        local.down("one", say=lambda _: None)


def test_a_port_in_use_is_said_by_its_key():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"serving.port {port} of 127.0.0.1 is in use"):
            prepared(f"serving.port={port}")
    assert state.read("one") is None


def test_plain_http_beyond_this_machine_has_to_be_said_aloud(monkeypatch):
    monkeypatch.setattr(socket.socket, "bind", lambda _self, _address: None)
    with pytest.raises(SpecError, match=r"serving: host 10.0.0.1 opens the ingress .* insecure = true"):
        load(LocalSpec, LOCAL, ["serving.host='10.0.0.1'"])
    assert load(LocalSpec, LOCAL, ["serving.host='10.0.0.1'", "serving.insecure=true"]).serving.insecure


@pytest.mark.parametrize(
    ("host", "require_key", "is_needed"),
    [("127.0.0.1", False, False), ("127.0.0.1", True, True), ("10.0.0.1", False, True)],
)
def test_behind_a_proxy_models_need_a_key_where_that_is_said(host, require_key, is_needed):
    prepared()
    serving = LocalServing.model_construct(
        **{**LocalServing().model_dump(), "host": host, "require_key": require_key}
    )
    found = state.read("one")
    assert found is not None
    assert start.local_settings(found, serving).is_key_needed_for_infer == is_needed


def test_attach_can_require_a_key_on_loopback(monkeypatch):
    wanted = []

    def refuse(settings):
        wanted.append(settings)
        raise ClusterError("far enough")

    monkeypatch.setattr(attach, "_connected", lambda _address: contextlib.nullcontext())
    monkeypatch.setattr(attach.start, "find", lambda: "a controller")
    monkeypatch.setattr(attach, "_check_same", lambda _before, settings: refuse(settings))
    for is_required in (False, True):
        with pytest.raises(ClusterError, match="far enough"):
            attach.attach("127.0.0.1:1", "far", is_key_required=is_required)
    assert [settings.is_key_needed_for_infer for settings in wanted] == [False, True]


def test_attach_again_does_not_pretend_to_require_a_key(monkeypatch):
    said = {"cluster": "far", "url": "http://127.0.0.1:8000", "is_key_needed_for_infer": False}
    monkeypatch.setattr("ray.get", lambda _answer, timeout: said)
    before = SimpleNamespace(ping=SimpleNamespace(remote=lambda: None))
    wanted = ControllerSettings("far", "", "", "127.0.0.1", 8000, "", "")
    attach._check_same(before, wanted)
    with pytest.raises(ClusterError, match=r"its models need no key; .* anew with --require-key"):
        attach._check_same(before, replace(wanted, is_key_needed_for_infer=True))


def test_down_forgets_what_was_served(home):
    prepared()
    record = settings.serving_dir("one") / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    down.down("one", say=lambda _: None)
    assert not record.parent.exists()
    with pytest.raises(ClusterNotRunning):
        down.down("one", say=lambda _: None)


def test_a_crash_does_not_forget_it(home):
    cluster = prepared()
    record = settings.serving_dir("one") / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    stale = {**state.to_json(cluster), "starter": vars(processes.Process(1, 1))}
    files.write_json(cluster.directory / "state.json", stale)
    local._clear_stale("one", lambda _: None)
    assert record.exists()


def far(name: str = "far") -> attached.AttachedCluster:
    cluster = attached.AttachedCluster(name, "10.0.0.1:6379", "http://127.0.0.1:8000", time.time())
    attached.write(cluster)
    return cluster


def test_an_attached_cluster_is_found_by_its_name(home):
    assert attached.read("far") is None
    cluster = far()
    assert attached.read("far") == cluster
    assert attached.names() == ["far"]
    assert cluster.admin_key_path == home / "attached/far/admin.key"
    attached.forget("far")
    assert attached.names() == []


def test_one_name_is_one_cluster():
    far()
    with pytest.raises(InputError, match="an attached cluster is called 'far'"):
        up.up("far", LOCAL)
    prepared()
    try:
        with pytest.raises(InputError, match="a local cluster is called 'one'"):
            attach.attach("127.0.0.1:1", "one")
    finally:
        local.down("one", say=lambda _: None)


def test_down_of_an_attached_cluster_takes_back_what_was_started_there(monkeypatch):
    detached = []
    monkeypatch.setattr(attach, "detach", lambda cluster, _say: detached.append(cluster.name))
    far()
    down.down("far", say=lambda _: None)
    assert detached == ["far"]


@pytest.mark.parametrize(
    ("url", "is_ready", "line"),
    [
        (None, False, "none: serving.enabled is false in this cluster's spec"),
        ("http://127.0.0.1:8000", True, "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000", False, "http://127.0.0.1:8000 (does not answer yet; see /l/serving.log)"),
    ],
)
def test_status_says_where_models_are(url, is_ready, line):
    found = local.ClusterStatus("one", True, "http://d", "g:1", 61, [], [], Path("/l"), url, is_ready)
    assert f"  ingress   {line}" in status.as_text(found).splitlines()
