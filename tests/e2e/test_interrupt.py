"""Ctrl-C and SIGTERM of the demo, at different moments: nothing of it is left."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eagleray.cluster import ports, processes, state

ROOT = Path(__file__).parents[2]
GIVE_UP_S = 480.0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        (r"starting cluster", signal.SIGINT, 130),
        (r"\$ ray job submit", signal.SIGINT, 130),
        (r"run digits-", signal.SIGTERM, 143),
        (r"step \d+/", signal.SIGINT, 130),
        (r"trial \d+ of 8", signal.SIGINT, 130),
        (r"digits/versions/1 is starting", signal.SIGTERM, 143),
        (r"callers want", signal.SIGINT, 130),
    ],
)
def test_nothing_is_left(tmp_path, monkeypatch, moment, number, code):
    for name in ("", "_STORAGE", "_TRACKING_URI"):
        monkeypatch.delenv(f"EAGLERAY{name}", raising=False)
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EAGLERAY_DEMO_CLUSTER", "bad")
    demo = subprocess.Popen(
        [sys.executable, "-u", "examples/demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    lines, cluster = [], None
    watchdog = threading.Timer(GIVE_UP_S, demo.send_signal, [signal.SIGTERM])
    watchdog.start()
    try:
        for line in demo.stdout:
            lines.append(line)
            if cluster is None and re.search(moment, line):
                cluster = state.read("bad")
                os.killpg(demo.pid, number)
    finally:
        watchdog.cancel()
    output = "".join(lines)
    assert cluster is not None, output
    assert demo.wait(10) == code, output
    assert "Traceback" not in output
    assert processes.belonging(cluster.marker) == [], output
    assert not cluster.runtime_dir.exists()
    assert list((tmp_path / "home" / "clusters").iterdir()) == []
    assert [port for port in cluster.ports.values() if not ports.is_free(cluster.host, port)] == []
