"""The supervisor with a head made of sleeping processes: it restarts the parts that it should."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest

from eagleray.cluster import files, processes, raylet_ray260, state
from eagleray.cluster import supervisor as supervisor_module

HEAD = """
import json, os, subprocess, sys
from pathlib import Path
from eagleray.cluster import processes
folder = Path(sys.argv[1])
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
start = lambda: subprocess.Popen(sleep, stdout=subprocess.DEVNULL).pid
found = [processes.of(start(), role) for role in ("gcs_server", "monitor", "reaper")]
(folder / "head.json").write_text(json.dumps([vars(process) for process in found]))
os._exit(int(os.environ.get("HEAD_STATUS", "0")))
"""
RUN = f"""
import subprocess, sys
from pathlib import Path
from eagleray.cluster import state, supervisor
real = subprocess.run
head = [sys.executable, "-c", {HEAD!r}, sys.argv[1]]
supervisor.subprocess.run = lambda _command, **options: real(head, **options)
sys.exit(supervisor.Supervisor(state.read_path(Path(sys.argv[1]))).run())
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    mark = os.urandom(8).hex()
    made = state.ClusterState("one", mark, "127.0.0.1", {}, tmp_path, processes.this_process(), time.time())
    made.directory.mkdir(parents=True)
    made.logs_dir.mkdir()
    files.write_json(made.directory / "state.json", state.to_json(made))
    yield made
    processes.sweep(lambda: processes.belonging(mark), grace_s=0)


def start(cluster, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(cluster.directory)],
        env={
            **os.environ,
            processes.MARKER: cluster.marker,
            "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def by_role(cluster):
    return {process.role: process for process in cluster.processes()}


def await_roles(cluster):
    assert processes.wait_until(lambda: "reaper" in by_role(cluster), timeout_s=60)


def test_parts_are_restarted_as_they_were_and_written_down(cluster):
    supervisor = start(cluster)
    await_roles(cluster)
    for role in ("gcs_server", "monitor"):
        killed = by_role(cluster)[role]
        processes.send(killed, signal.SIGKILL)
        assert processes.wait_until(
            lambda role=role, killed=killed: (now := by_role(cluster)[role]) != killed and now.is_alive,
            timeout_s=60,
        )
        assert processes.carries(by_role(cluster)[role].pid, cluster.marker)
    other = by_role(cluster)["reaper"]
    processes.send(other, signal.SIGKILL)
    supervisor.terminate()
    printed, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0
    assert "gcs_server ended (-9); restarting it in 0.0 s" in printed
    assert by_role(cluster)["reaper"] == other


def test_killing_the_supervisor_ends_nothing_else(cluster):
    supervisor = start(cluster)
    await_roles(cluster)
    supervisor.kill()
    supervisor.wait(60)
    alive = {role for role, process in by_role(cluster).items() if process.is_alive}
    assert alive == {"gcs_server", "monitor", "reaper"}
    assert cluster.is_running


def test_helpers_wait_until_jobs_are_accepted_and_run_until_they_succeed(cluster, capsys):
    fails_once = "import os, sys; seen = os.path.exists('x'); open('x', 'w').close(); sys.exit(not seen)"
    files.write_json(cluster.directory / "helpers.json", {"serving": ["-c", fails_once]})
    watching = supervisor_module.Supervisor(cluster)
    watching._plan_helpers()
    assert watching.parts == {}
    state.accepts_jobs_path(cluster.directory).touch()
    watching._plan_helpers()
    for status in (1, 0):
        part = watching.parts["serving"]
        part.restart_at_s = min(part.restart_at_s, 1e-9)  # at once
        watching._restart_due()
        assert part.arguments[-1] == str(cluster.directory)
        ended = os.waitpid(part.process.pid, 0)[1]
        assert os.waitstatus_to_exitcode(ended) == status
        watching._ended("serving", ended)
        assert ("serving" in watching.parts) is bool(status)
    watching._plan_helpers()
    assert watching.parts == {}, "it is done"
    assert "serving is done" in capsys.readouterr().out


def test_a_head_that_fails_ends_the_supervisor(cluster):
    supervisor = start(cluster, HEAD_STATUS="3")
    printed, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 3
    assert "head_main ended with 3" in printed


def test_a_part_that_keeps_ending_is_restarted_ever_more_slowly(cluster, capsys, monkeypatch):
    watching = supervisor_module.Supervisor(cluster)
    part = supervisor_module.Part(processes.this_process("gcs_server"), [], {}, ".")
    watching.parts["gcs_server"] = part
    now_s = time.monotonic()
    monkeypatch.setattr(
        supervisor_module, "time", types.SimpleNamespace(monotonic=lambda: now_s, strftime=time.strftime)
    )
    waits = []
    for part.restarts in range(8):
        watching._ended("gcs_server", 9)
        waits.append(part.restart_at_s - now_s)
    assert [round(wait) for wait in waits] == [0, 1, 2, 4, 8, 10, 10, 10]
    assert "restarting it in 10.0 s" in capsys.readouterr().out
    part.started_s -= 120  # it ran for two minutes since
    watching._ended("gcs_server", 9)
    assert part.restart_at_s - now_s < 0.1


@pytest.mark.parametrize(
    ("role", "arguments", "reason"),
    [("gcs_server", ["/no/such/program"], "No such file"), ("raylet", ["raylet"], "Ray has changed")],
)
def test_a_restart_that_fails_is_tried_again_later(cluster, capsys, role, arguments, reason):
    watching = supervisor_module.Supervisor(cluster)
    part = supervisor_module.Part(processes.this_process(role), arguments, {}, ".", restart_at_s=1e-9)
    watching.parts[role] = part
    began_s = time.monotonic()
    watching._restart_due()
    printed = capsys.readouterr().out
    assert f"cannot restart {role}: " in printed
    assert reason in printed
    assert "trying again in 1.0 s" in printed
    assert began_s + 1.0 <= part.restart_at_s <= time.monotonic() + 1.1
    part.arguments, part.restart_at_s = ["sleep", "--node_id=1"], 1e-9
    watching._restart_due()
    assert f"restarted {role} as {part.process.pid}" in capsys.readouterr().out
    watching._ended(role, os.waitpid(part.process.pid, 0)[1])


def test_a_part_that_ends_as_soon_as_it_is_restarted_is_seen_to_end(cluster, monkeypatch):
    of = processes.of

    def once_ended(pid, role=""):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return of(pid, role)

    watching = supervisor_module.Supervisor(cluster)
    part = supervisor_module.Part(processes.this_process("monitor"), ["false"], {}, ".", restart_at_s=1e-9)
    watching.parts["monitor"] = part
    with monkeypatch.context() as patch:
        patch.setattr(processes, "of", once_ended)
        watching._restart_due()
    assert part.restart_at_s == 0
    subprocess.run(["true"], check=True)  # a new process makes subprocess look for forgotten ones
    watching._reap()
    assert part.restart_at_s > 0


def test_what_cannot_be_written_down_is_written_later(cluster, monkeypatch):
    watching = supervisor_module.Supervisor(cluster)
    with monkeypatch.context() as patch:
        patch.setattr(supervisor_module, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        watching._try_to_write_down()
    assert not watching.is_written_down
    watching._try_to_write_down()
    assert watching.is_written_down
    assert [process.role for process in cluster.processes()] == ["supervisor"]


def test_a_raylet_comes_back_as_a_new_node(tmp_path):
    (tmp_path / "raylet").touch()
    old = "ab" * 28
    arguments = [
        "raylet",
        f"--raylet_socket_name={tmp_path}/raylet",
        f"--node_id={old}",
        f"agent --node-id={old} -x",
    ]
    renewed = raylet_ray260.renew(arguments)
    assert not (tmp_path / "raylet").exists()
    new = renewed[2].removeprefix("--node_id=")
    assert len(new) == len(old)
    assert new != old
    assert renewed[3] == f"agent --node-id={new} -x"
    with pytest.raises(ValueError, match="Ray has changed"):
        raylet_ray260.renew(["raylet"])
