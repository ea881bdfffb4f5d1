"""State on disk: found by name, private, and read without ray or torch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagleray.cluster import attached, environment, files, local, processes, profiles, settings, state
from eagleray.errors import AuthError, ClusterError, ClusterNotRunning, InputError
from eagleray.specs import LocalSpec, load
from eagleray.workflows import env as env_workflow
from eagleray.workflows import status as status_workflow

ROOT = Path(__file__).parents[3]
ENDED = processes.Process(2**22 + 1, 1, "supervisor")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    for name in ("EAGLERAY_STORAGE", "EAGLERAY_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def write(tmp_path, name="one", starter=ENDED, running=()):
    cluster = state.ClusterState(
        name=name,
        marker="0123456789abcdef",
        host="127.0.0.1",
        ports={
            "gcs": 20001,
            "dashboard": 20002,
            "agent_http": 20003,
            "autoscaler_metrics": 1,
            "dashboard_metrics": 2,
        },
        runtime_dir=tmp_path / f"er-{name}",
        starter=starter,
        created_s=time.time(),
    )
    cluster.directory.mkdir(parents=True)
    cluster.nodes_dir.mkdir()
    cluster.logs_dir.mkdir()
    cluster.runtime_dir.mkdir()
    cluster.token_path.write_text("secret\n")
    files.write_json(cluster.directory / "state.json", state.to_json(cluster))
    files.write_json(cluster.directory / "processes.json", [vars(process) for process in running])
    return cluster


def test_settings_follow_the_environment(home, monkeypatch):
    assert settings.home() == home
    assert settings.storage_url() == str(home / "storage")
    assert settings.tracking_uri() == f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("EAGLERAY_STORAGE", "s3://bucket/runs")
    monkeypatch.setenv("EAGLERAY_TRACKING_URI", "http://tracking:5000")
    assert settings.storage_url() == "s3://bucket/runs"
    assert settings.tracking_uri() == "http://tracking:5000"
    monkeypatch.delenv("EAGLERAY_HOME")
    assert settings.home() == Path.home() / ".eagleray"


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        ("EAGLERAY_HOME", settings.home),
        ("EAGLERAY_STORAGE", settings.storage_url),
        ("EAGLERAY_TRACKING_URI", settings.tracking_uri),
    ],
)
def test_a_home_of_nobody_is_named(monkeypatch, variable, found):
    prefix = "sqlite:///" if variable == "EAGLERAY_TRACKING_URI" else ""
    monkeypatch.setenv(variable, f"{prefix}~no-such-user/x")
    with pytest.raises(InputError, match=f"^{variable} ~no-such-user/x: .*; set {variable} to a path"):
        found()


def test_a_token_that_is_no_text(tmp_path):
    cluster = write(tmp_path, running=[])
    cluster.token_path.write_bytes(b"\xff\x00")
    with pytest.raises(AuthError, match=r"the token of cluster 'one' cannot be read: .*token: not text; "):
        _ = cluster.token


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which not even root can make one")
def test_a_home_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setenv("EAGLERAY_HOME", "/proc/x")
    with pytest.raises(InputError, match=r"^EAGLERAY_HOME /proc/x: cannot be made: .*; set EAGLERAY_HOME"):
        settings.make_home()
    cluster = attached.AttachedCluster("a", "h:1", "http://h:2", 0.0)
    with pytest.raises(InputError, match="EAGLERAY_HOME /proc/x"):
        attached.write(cluster)


def test_what_is_written_is_read(tmp_path):
    written = write(tmp_path, running=[processes.this_process("supervisor")])
    found = state.find("one")
    assert found == written
    assert found.token == "secret"
    assert found.gcs_address == "127.0.0.1:20001"
    assert state.names() == ["one"]


@pytest.mark.parametrize("name", ["", "Big", "a/b", "..", "-a", "a" * 40, "a_b"])
def test_names_that_cannot_be_folders(name):
    with pytest.raises(InputError, match="cluster name"):
        state.directory(name)


def test_a_cluster_that_is_not_there_names_those_that_are(tmp_path):
    write(tmp_path, "other", running=[processes.this_process("supervisor")])
    with pytest.raises(ClusterNotRunning, match=r"no cluster 'one'.*eagleray up --name one.*running: other"):
        state.find("one")


def test_a_stale_state_says_how_to_go_on(tmp_path):
    write(tmp_path, running=[ENDED])
    with pytest.raises(ClusterNotRunning, match=r"its processes have ended.*eagleray up --name one"):
        state.find("one")
    with pytest.raises(ClusterNotRunning):
        local.status("one")


DAMAGED = ["", "{", "[]", '{"name": "one"}', None]
"""Texts of a state.json; None: there is none any more."""


def damage(cluster, text):
    path = cluster.directory / "state.json"
    path.unlink() if text is None else path.write_text(text)


def part_of(cluster):
    """A process like those of the cluster, which are found by their environment."""
    found = environment.of_cluster(cluster, profile="default", extra={"TMPDIR": "/"})
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env=found)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_state_is_said_and_down_removes_what_is_left(tmp_path, text):
    cluster = write(tmp_path)
    damage(cluster, text)
    assert state.read("one") is None
    with pytest.raises(ClusterError, match=r"'one': its state cannot be read \(.*state.json.*`eagleray down"):
        local.status("one")
    said = []
    assert local.down("one", say=said.append).num_processes == 0
    assert not cluster.directory.exists()
    assert "the state of cluster 'one' cannot be read" in said[0]
    with pytest.raises(ClusterNotRunning):
        local.down("one")


@pytest.mark.parametrize(("key", "value"), [("runtime_dir", ""), ("runtime_dir", "er-1"), ("marker", "")])
def test_a_state_that_would_lead_down_to_other_folders_or_processes_counts_as_damaged(tmp_path, key, value):
    cluster = write(tmp_path)
    damage(cluster, json.dumps({**state.to_json(cluster), key: value}))
    assert state.read("one") is None
    assert str(cluster.directory) in (state.damage("one") or "")


@pytest.mark.parametrize("text", DAMAGED)
def test_up_beside_a_damaged_state_loses_no_process_and_down_finds_them(tmp_path, text):
    cluster = write(tmp_path)
    with part_of(cluster) as running:
        try:
            damage(cluster, text)
            with pytest.raises(
                ClusterError, match=r"'one' runs \(1 processes\), but its state cannot be read"
            ):
                local._clear_stale("one", print)
            assert cluster.directory.exists()
            assert running.poll() is None
            assert local.down("one").num_processes == 1
            running.wait(60)
            assert not cluster.directory.exists()
            assert not cluster.runtime_dir.exists()
        finally:
            running.kill()


def test_up_clears_a_damaged_state_of_which_nothing_runs(tmp_path):
    cluster = write(tmp_path)
    damage(cluster, "{")
    said = []
    local._clear_stale("one", said.append)
    assert "and no process of it runs: removing it" in said[0]
    assert not cluster.directory.exists()


def test_down_finds_the_folder_though_a_process_has_lost_the_variable_that_names_it(tmp_path, monkeypatch):
    cluster = write(tmp_path)
    found = environment.of_cluster(cluster, profile="default", extra={})
    without = {name: value for name, value in found.items() if name != "RAY_gcs_storage_path"}
    for order in ([found, without], [without, found]):
        monkeypatch.setattr(processes, "running", lambda _token, order=order: order)
        assert [one.runtime_dir for one in local._search("one")] == [cluster.runtime_dir]


def test_down_leaves_alone_what_an_up_has_made_meanwhile(tmp_path, monkeypatch):
    cluster = write(tmp_path)
    monkeypatch.setattr(local, "_remove", lambda _cluster: [])  # and at once there is a new one
    local.down("one")
    assert state.read("one") == cluster


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("127.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_a_loopback_is_one_whatever_a_name_server_says(host, is_ours):
    assert state.is_loopback(host) == is_ours


def test_down_of_a_stale_state_removes_it(tmp_path):
    cluster = write(tmp_path, running=[ENDED])
    report = local.down("one")
    assert report.num_processes == 0
    assert not cluster.directory.exists()
    assert not cluster.runtime_dir.exists()


def test_a_second_up_is_told_apart_from_a_stale_one(tmp_path):
    me = processes.this_process("up")
    write(tmp_path, starter=me)
    with pytest.raises(ClusterError, match="is being started by process"):
        local._clear_stale("one", print)
    said = []
    write(tmp_path, "two", running=[ENDED, ENDED], starter=me)
    local._clear_stale("two", said.append)
    assert said == ["cleaning up after cluster 'two', which ended without `eagleray down`"]
    assert state.read("two") is None


def test_exports_are_what_rays_commands_need(tmp_path):
    cluster = write(tmp_path, running=[processes.this_process("supervisor")])
    text = env_workflow.as_shell(env_workflow.env("one"))
    assert "export RAY_ADDRESS=127.0.0.1:20001\n" in text
    assert "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:20002\n" in text
    assert f"export RAY_AUTH_TOKEN_PATH={cluster.token_path}" in text
    assert "secret" not in text
    assert processes.MARKER not in text


def test_exports_for_the_sdk_name_the_keys_file(tmp_path):
    with pytest.raises(ClusterNotRunning):
        env_workflow.for_sdk("one")
    cluster = write(tmp_path, running=[processes.this_process("supervisor")])
    with pytest.raises(ClusterError, match="without serving"):
        env_workflow.for_sdk("one")
    serving = {**vars(cluster), "ports": {**cluster.ports, "ingress": 20009}}
    files.write_json(cluster.directory / "state.json", state.to_json(state.ClusterState(**serving)))
    with pytest.raises(ClusterError, match="has not started yet"):
        env_workflow.for_sdk("one")
    cluster.admin_key_path.write_text("er_secret\n")
    assert env_workflow.for_sdk("one") == (
        f'export EAGLERAY_URL=http://127.0.0.1:20009\nexport EAGLERAY_KEY="$(cat {cluster.admin_key_path})"'
    )


def test_a_cluster_on_the_network_keeps_rays_own_address_rules(tmp_path):
    cluster = write(tmp_path)
    open_cluster = state.ClusterState(**{**vars(cluster), "host": "192.0.2.7"})
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in state.environment(open_cluster)


def test_the_clusters_environment(tmp_path, monkeypatch, home):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    monkeypatch.setenv("RAY_health_check_period_ms", "9")
    monkeypatch.setenv("RAY_PROMETHEUS_HOST", "http://prometheus:9090")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    cluster = write(tmp_path)
    found = environment.of_cluster(cluster, profile="default", extra={"MINE": "1"})
    assert "RAY_ADDRESS" not in found
    assert "PYTHONDONTWRITEBYTECODE" not in found
    assert found["RAY_health_check_period_ms"] == "1000"
    assert found["RAY_PROMETHEUS_HOST"] == "http://prometheus:9090"
    assert found["RAY_GRAFANA_HOST"] == "DISABLED"
    assert found["AUTOSCALER_UPDATE_INTERVAL_S"] == "1"
    assert found["EAGLERAY_HOME"] == str(home)
    assert found["EAGLERAY_STORAGE"] == str(home / "storage")
    assert found["GLOO_SOCKET_IFNAME"] == "lo"
    assert found[processes.MARKER] == cluster.marker
    assert found["MINE"] == "1"
    assert found["PATH"].startswith(str(Path(sys.executable).parent))
    assert Path(found["PYTHONPATH"].split(":")[0], "eagleray").is_dir()
    fast = environment.of_cluster(cluster, profile="fast", extra={})
    assert profiles.named("fast").environment().items() <= fast.items()


def test_status_in_words_and_as_json(tmp_path):
    write(tmp_path, running=[processes.this_process("supervisor"), ENDED])
    found = status_workflow.status("one")
    text = status_workflow.as_text(found)
    assert "cluster one: NOT READY" in text
    assert "ENDED" in text
    assert "http://127.0.0.1:20002" in text
    shown = json.loads(json.dumps(local.to_json(found)))
    assert [process["is_alive"] for process in shown["processes"]] == [True, False]


def test_everything_but_ray_itself_loads_without_ray_and_torch():
    code = (
        "import sys\n"
        "from eagleray.cluster import environment, local, node_types, nodes, settings\n"
        "from eagleray.cluster import state, supervisor\n"
        "from eagleray.workflows import down, env, status, up\n"
        "print(sorted({'ray', 'torch', 'yaml', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("num_failures", [1, 2])
def test_a_head_that_does_not_come_up_is_tried_once_more(tmp_path, monkeypatch, num_failures):
    started = []

    def start(cluster, _spec):
        started.append(cluster)
        code = (
            "print('no raylet'); raise SystemExit(3)"
            if len(started) <= num_failures
            else "import time; time.sleep(60)"
        )
        with (cluster.logs_dir / "supervisor.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code], stdout=log, env={**os.environ, processes.MARKER: cluster.marker}
            )

    monkeypatch.setattr(local, "_start_supervisor", start)
    monkeypatch.setattr(local, "is_ready", lambda _cluster: len(started) > num_failures)
    monkeypatch.setattr(local, "_is_supervised", lambda _cluster: True)
    spec, said = load(LocalSpec, ROOT / "local.toml"), []
    if num_failures == 1:
        assert local.up("one", spec, say=said.append) == started[1]
        assert local.down("one").num_processes == 1
    else:
        with pytest.raises(
            ClusterError, match=r"'one' did not start: its head ended; its log ends with:\nno raylet"
        ):
            local.up("one", spec, say=said.append)
    assert len(started) == 2
    assert any("trying once more" in line for line in said)
    assert not any(cluster.runtime_dir.exists() or cluster.directory.exists() for cluster in started)
