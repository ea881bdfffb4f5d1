"""`up`, `down`, `status` and serving, without a cluster: names, ports, what is kept and what goes."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from eagleray.cli.cluster import attach as cli_attach
from eagleray.cluster import (
    attached,
    files,
    local,
    node_types,
    preparation,
    processes,
    profiles,
    recovery_ray260,
    settings,
    state,
)
from eagleray.errors import ClusterError, ClusterNotRunning, InputError, SpecError
from eagleray.serving import memory, start
from eagleray.serving.control_settings import ControllerSettings
from eagleray.serving.preconditions import NodeFacts
from eagleray.serving.serve_control_ray260 import ServeControl
from eagleray.specs import LocalSpec, load
from eagleray.specs.local import LocalServing, ProfileName
from eagleray.workflows import attach, detach, down, status, up

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
        assert not {"ingress", "serve"} & set(cluster.ports)
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


def test_a_trusted_proxy_is_an_address_or_a_network():
    with pytest.raises(SpecError, match=r"trusted_proxies.*'proxy.example' is no address and no network"):
        load(LocalSpec, LOCAL, ["serving.trusted_proxies=['10.0.0.0/8', 'proxy.example']"])
    with pytest.raises(InputError, match=r"trusted proxies: '10.0.0.1/8' is no address and no network"):
        attach.attach("10.0.0.1:6379", "theirs", trusted_proxies=["10.0.0.1/8"])


def test_plain_http_beyond_this_machine_has_to_be_said_aloud(monkeypatch):
    monkeypatch.setattr(socket.socket, "bind", lambda _self, _address: None)
    with pytest.raises(SpecError, match=r"serving: host 10.0.0.1 opens the ingress .* insecure = true"):
        load(LocalSpec, LOCAL, ["serving.host='10.0.0.1'"])
    assert load(LocalSpec, LOCAL, ["serving.host='10.0.0.1'", "serving.insecure=true"]).serving.insecure
    files = [f"serving.tls_cert='{LOCAL}'", f"serving.tls_key='{LOCAL}'"]  # any: they are read by the gateway
    assert not load(LocalSpec, LOCAL, ["serving.host='10.0.0.1'", *files]).serving.insecure
    with pytest.raises(SpecError, match="tls_cert and tls_key belong together"):
        load(LocalSpec, LOCAL, files[:1])
    with pytest.raises(InputError, match=r"plain HTTP; give --tls-cert and --tls-key, or .* say --insecure"):
        attach.attach("10.0.0.1:6379", "theirs", host="10.0.0.1")
    with pytest.raises(InputError, match=r"--tls-cert and --tls-key belong together"):
        attach.attach("10.0.0.1:6379", "theirs", host="10.0.0.1", tls_cert="/cert.pem")
    with pytest.raises(InputError, match=r"key\.pem: give the file's whole path on the head"):
        attach.attach("10.0.0.1:6379", "theirs", tls_cert="/cert.pem", tls_key="key.pem")


def test_with_a_certificate_the_ingress_is_called_by_https(tmp_path):
    serving = [f"serving.tls_cert='{LOCAL}'", f"serving.tls_key='{LOCAL}'"]
    cluster = prepared(*serving)
    assert cluster.ingress_url == f"https://127.0.0.1:{cluster.ports['ingress']}"
    assert state.read("one") == cluster
    wanted = start.local_settings(cluster, load(LocalSpec, LOCAL, serving).serving)
    assert wanted.url == cluster.ingress_url
    assert (wanted.gateway.tls_cert, wanted.gateway.tls_key) == (str(LOCAL), str(LOCAL))


@pytest.mark.parametrize(
    ("host", "require_key", "trusted_proxies", "is_needed"),
    [
        ("127.0.0.1", False, [], False),
        ("127.0.0.1", True, [], True),
        ("127.0.0.1", False, ["127.0.0.1"], True),
        ("10.0.0.1", False, [], True),
    ],
)
def test_behind_a_proxy_models_need_a_key(host, require_key, trusted_proxies, is_needed):
    prepared()
    said = {"host": host, "require_key": require_key, "trusted_proxies": tuple(trusted_proxies)}
    serving = LocalServing.model_construct(**{**LocalServing().model_dump(), **said})
    found = state.read("one")
    assert found is not None
    wanted = start.local_settings(found, serving)
    assert wanted.is_key_needed_for_infer == is_needed
    assert wanted.gateway.trusted_proxies == tuple(trusted_proxies)
    assert (wanted.port, wanted.serve_port) == (found.ports["ingress"], found.ports["serve"])
    assert ControllerSettings.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


def test_attach_can_require_a_key_on_loopback(monkeypatch):
    wanted = []

    def refuse(settings):
        wanted.append(settings)
        raise ClusterError("far enough")

    monkeypatch.setattr(attach, "joined", lambda _address, _env: contextlib.nullcontext())
    monkeypatch.setattr(attach.start, "find", lambda: "a controller")
    monkeypatch.setattr(attach, "_check_same", lambda _before, settings: refuse(settings))
    for is_required in (False, True):
        with pytest.raises(ClusterError, match="far enough"):
            attach.attach("127.0.0.1:1", "far", is_key_required=is_required)
    assert [settings.is_key_needed_for_infer for settings in wanted] == [False, True]


def test_attach_knows_the_profiles_before_it_joins_anything():
    with pytest.raises(InputError, match="no recovery profile is called 'quick'; choose one of default"):
        attach.attach("127.0.0.1:1", "far", profile="quick")
    (choice,) = [option for option in cli_attach.params if option.name == "profile"]
    assert list(choice.type.choices) == list(profiles.PROFILES) == list(get_args(ProfileName))


@pytest.mark.parametrize(
    ("of_nodes", "is_serve_older", "starts"),
    [
        (["fast", "fast"], False, ["recovery profile fast: a rank without a sign of life for 3 s hangs"]),
        (
            ["fast", "fast"],
            True,
            ["recovery profile fast: ", "warning: Serve ran before, and goes on checking"],
        ),
        (
            ["fast", "", "lossy"],
            False,
            ["recovery profile fast: ", "warning: Ray on h1, h2 was started without this profile, and reads"],
        ),
    ],
)
def test_attach_says_what_of_a_profile_a_running_cluster_does_not_take(of_nodes, is_serve_older, starts):
    nodes = [NodeFacts(f"h{at}", f"10.0.0.{at}", profile=name) for at, name in enumerate(of_nodes)]
    fast = profiles.named("fast")
    lines = attach.what_holds(fast, nodes, is_serve_older=is_serve_older, lease_s=15.0)
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


@pytest.mark.parametrize(
    ("said", "is_older"), [({"lease_s": 15.0}, True), ({}, True), ({"lease_s": 80.0}, False)]
)
def test_attach_says_where_a_ledger_that_ran_before_is_not_as_patient(monkeypatch, said, is_older):
    monkeypatch.setattr("ray.get", lambda _answer, timeout: said)
    lease_s = attach._lease_s(SimpleNamespace(ping=SimpleNamespace(remote=lambda: None)))
    lines = attach.what_holds(profiles.named("lossy"), [], is_serve_older=False, lease_s=lease_s)
    assert [line.startswith("warning: the ledger ran before, and goes on to end") for line in lines[1:]] == (
        [True] if is_older else []
    )


def test_attach_again_does_not_pretend_to_require_a_key(monkeypatch):
    said = {
        **{"cluster": "far", "url": "http://127.0.0.1:8000"},
        **{"is_key_needed_for_infer": False, "is_ending": False},
    }
    monkeypatch.setattr("ray.get", lambda _answer, timeout: said)
    before = SimpleNamespace(ping=SimpleNamespace(remote=lambda: None))
    wanted = ControllerSettings("far", "", "", "127.0.0.1", 8000, "", "")
    attach._check_same(before, wanted)
    with pytest.raises(ClusterError, match=r"its models need no key; .* anew with --require-key"):
        attach._check_same(before, replace(wanted, is_key_needed_for_infer=True))
    said["is_ending"] = True
    with pytest.raises(ClusterError, match=r"as 'far', and what was started there is being taken down; "):
        attach._check_same(before, wanted)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("10.0.0.1", "http://10.0.0.1:8000"),
        ("0.0.0.0", "http://10.0.0.7:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_an_ingress_on_all_interfaces_is_reached_at_the_heads_address(host, url):
    wanted = ControllerSettings("far", "", "", host, 8000, "", "")
    assert attach.reachable_url(wanted, "10.0.0.7") == url


@pytest.mark.parametrize(("address", "is_mine"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_an_address_of_this_machine(address, is_mine):
    assert attach.is_mine(address) == is_mine


def test_what_is_served_is_kept_where_it_can_be_written(home, monkeypatch):
    assert memory.make_directory("far") == (str(home / "serving/far"), "")
    assert (home / "serving/far").stat().st_mode & 0o777 == 0o700
    (home / "file").touch()
    with monkeypatch.context() as patch:
        patch.setenv("EAGLERAY_HOME", str(home / "file"))
        folder, trouble = memory.make_directory("far")
    assert folder == ""
    assert "is a file, not a folder" in trouble


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


class FarController:
    """What `ray.get` says of its methods, one after the other; an exception is raised."""

    def __init__(self, monkeypatch, *answers):
        self.answers = list(answers)
        self.killed = []
        method = SimpleNamespace(remote=lambda: None)
        self.end, self.ping = method, method
        monkeypatch.setattr(detach, "joined", lambda _address: contextlib.nullcontext())
        self.withdrawn = []
        monkeypatch.setattr(recovery_ray260, "withdraw", lambda: self.withdrawn.append(True))
        self.ended_ledgers = []
        monkeypatch.setattr(detach.ledger, "end", lambda: self.ended_ledgers.append(True))
        monkeypatch.setattr(detach.start, "find", lambda: self)
        monkeypatch.setattr("ray.get", lambda _answer, timeout: self._next())
        monkeypatch.setattr("ray.kill", self.killed.append)

    def _next(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_down_of_an_attached_cluster_takes_back_what_was_started_there(monkeypatch):
    far()
    controller = FarController(monkeypatch, None)
    down.down("far", say=lambda _: None)
    assert controller.killed == [controller]
    assert controller.withdrawn == controller.ended_ledgers == [True]
    assert attached.read("far") is None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [GetTimeoutError("Get timed out"), {"trouble": "Serve is ending m--a"}],
            r"`eagleray down --name far`: what `attach` started on the cluster at 10\.0\.0\.1:6379 has not "
            r"ended in 90 s: Serve is ending m--a; it goes on there: run this again, which waits for it",
        ),
        (
            [GetTimeoutError("Get timed out"), GetTimeoutError("Get timed out")],
            r"in 90 s: its serving controller does not answer; run this again, and .*ray::ControllerActor",
        ),
        (
            [ActorUnavailableError("the connection was lost", None)],
            r"its serving controller failed: .*the connection was lost.*; run this again, which goes on",
        ),
    ],
)
def test_a_down_that_has_not_ended_is_told_and_the_next_one_goes_on(monkeypatch, answers, message):
    far()
    controller = FarController(monkeypatch, *answers, None)
    with pytest.raises(ClusterError, match=message):
        down.down("far", say=lambda _: None)
    assert attached.read("far") is not None
    assert controller.killed == []
    assert controller.withdrawn == controller.ended_ledgers == []
    down.down("far", say=lambda _: None)
    assert controller.killed == [controller]
    assert attached.read("far") is None


def test_down_of_an_attached_cluster_that_is_gone_says_how_to_forget_it():
    cluster = attached.AttachedCluster("far", "127.0.0.1:1", "http://127.0.0.1:8000", time.time())
    attached.write(cluster)
    message = rf"nobody answers at .* gone for good, delete {cluster.directory}"
    with pytest.raises(ClusterError, match=message):
        down.down("far", say=lambda _: None)


@pytest.mark.parametrize(
    ("apps", "is_left"), [([], False), (["other"], False), (["ingress", "m--a--v1"], True)]
)
def test_down_does_not_pretend_where_the_controller_is_gone(monkeypatch, apps, is_left):
    far()
    FarController(monkeypatch)
    monkeypatch.setattr(detach.start, "find", lambda: None)
    monkeypatch.setattr(ServeControl, "is_running", lambda _self: True)
    monkeypatch.setattr(ServeControl, "observe", lambda _self: dict.fromkeys(apps))
    if is_left:
        message = r"Serve still runs ingress, m--a--v1; `eagleray attach` as before"
        with pytest.raises(ClusterError, match=message):
            down.down("far", say=lambda _: None)
    else:
        down.down("far", say=lambda _: None)
    assert (attached.read("far") is not None) == is_left


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
