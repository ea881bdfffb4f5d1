"""Processes are found by marker and descent, told apart by start time, and ended until none is left."""

import os
import signal
import subprocess
import sys
import threading
import uuid

import pytest

from eagleray.cluster import ports, processes

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
FORGETFUL = (  # starts a child without the marker, as `env -i` would
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}}); "
    "import time; time.sleep(60)"
)
RESTARTING = (  # starts a successor when told to end
    "import os, signal, subprocess, sys\n"
    "def again(*_):\n"
    f"    subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True); os._exit(0)\n"
    "signal.signal(signal.SIGTERM, again)\n" + SLEEP
)


@pytest.fixture
def marker():
    mark = uuid.uuid4().hex
    yield mark
    processes.sweep(lambda: processes.belonging(mark), grace_s=0)


def start(code, marker):
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, processes.MARKER: marker},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def test_a_process_is_its_pid_and_its_start():
    me = processes.this_process("test")
    assert me.is_alive
    assert not processes.Process(me.pid, me.start + 1).is_alive
    assert processes.start_time(2**22 + 1) is None


@pytest.mark.parametrize("code", [SLEEP, STUBBORN, FORGETFUL, RESTARTING])
def test_a_sweep_leaves_nothing(code, marker):
    child = start(code, marker)
    found = processes.belonging(marker)
    assert child.pid in {process.pid for process in found}
    ended = processes.sweep(lambda: processes.belonging(marker), grace_s=0.3)
    assert child.wait(60) is not None
    assert {process.pid for process in ended} >= {process.pid for process in found}
    assert not any(process.is_alive for process in ended)
    assert processes.belonging(marker) == []


def test_the_caller_is_spared_even_with_the_marker(marker):
    code = (
        "from eagleray.cluster import processes; import os\n"
        f"print([process.pid for process in processes.belonging({marker!r})], flush=True)"
    )
    env = {**os.environ, processes.MARKER: marker, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_signals_reach_only_the_process_meant(marker):
    child = start(SLEEP, marker)
    now = processes.of(child.pid)
    processes.send(processes.Process(now.pid, now.start + 1), signal.SIGKILL)
    assert now.is_alive
    processes.send(now, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    processes.send(now, signal.SIGKILL)  # nothing happens


def test_ports_are_free_distinct_and_not_those_taken():
    names = [f"port{index}" for index in range(30)]
    found = ports.free_ports("127.0.0.1", names)
    assert len(set(found.values())) == 30
    again = ports.free_ports("127.0.0.1", names, taken=found.values())
    assert not set(found.values()) & set(again.values())
    assert all(port > 19_999 for port in found.values())


def test_a_port_with_a_listener_is_not_free():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not ports.is_free("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_undisturbed_ignores_a_signal_and_hears_the_next(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with processes.undisturbed():
            os.kill(os.getpid(), number)
        assert heard == []
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_undisturbed_does_nothing_in_another_thread():
    def run():
        with processes.undisturbed():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert seen == [signal.getsignal(signal.SIGTERM)]
