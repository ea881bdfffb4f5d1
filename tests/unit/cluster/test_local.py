"""Taking a cluster down, and the folders that go with it; nothing of Ray's runs."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from eagleray.cluster import files, local, processes, state
from eagleray.errors import ClusterError, SpecError
from eagleray.specs import LocalSpec, load

LOCAL = Path(__file__).parents[3] / "local.toml"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """What a cluster that crashed leaves on disk."""
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    mark = os.urandom(8).hex()
    made = state.ClusterState(
        "one", mark, "127.0.0.1", {}, tmp_path / "run", processes.this_process(), time.time()
    )
    made.directory.mkdir(parents=True)
    made.runtime_dir.mkdir()
    files.write_json(made.directory / "state.json", state.to_json(made))
    return made


def test_down_is_not_disturbed_by_a_second_ctrl_c(cluster, monkeypatch):
    sweep = processes.sweep

    def interrupted(find):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return sweep(find)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(processes, "sweep", interrupted)
    assert local.down("one", say=lambda _: None).num_processes == 0
    assert not cluster.directory.exists()
    assert not cluster.runtime_dir.exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_down_says_which_folder_it_cannot_delete_and_can_be_run_again(cluster, monkeypatch):
    pauses = []
    with monkeypatch.context() as patch:
        patch.setattr(files.time, "sleep", pauses.append)
        patch.setattr(
            files.shutil,
            "rmtree",
            lambda path, onerror: onerror(os.rmdir, f"{path}/x", (OSError, OSError(16, "busy"), None)),
        )
        with pytest.raises(ClusterError) as caught:
            local.down("one")
    assert str(caught.value) == (
        f"cluster 'one': its processes have ended, but the folder {cluster.runtime_dir} cannot be deleted "
        f"({cluster.runtime_dir}/x: [Errno 16] busy); see to that, then run `eagleray down --name one` again"
    )
    assert pauses == [0.1] * 4
    local.down("one", say=lambda _: None)
    assert not cluster.directory.exists()


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("localhost", "not an IPv4 address"),
        ("::1", "not an IPv4 address"),
        ("", "not an IPv4 address"),
        ("127.1", "not an IPv4 address"),
        ("0.0.0.0", "not the address of one machine"),
        ("224.0.0.1", "not the address of one machine"),
        ("192.0.2.1", "Ray cannot listen on"),  # kept for documentation: nobody has it
    ],
)
def test_a_host_that_ray_cannot_use(host, reason, monkeypatch):
    def bind(_self, address):
        if address[0].startswith("192.0.2."):
            raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {"bind": bind}))
    with pytest.raises(SpecError) as caught:
        load(LocalSpec, LOCAL, [f'host="{host}"'])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{LOCAL}: host: ")
    assert reason in line
    assert "give an IPv4 address of this machine" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_host_that_ray_can_use(host):
    assert load(LocalSpec, LOCAL, [f'host="{host}"']).host == host
