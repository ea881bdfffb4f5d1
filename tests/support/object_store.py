"""A real object store with an S3 API, for the time of a test session."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_TIMEOUT_S = 240.0


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """OpenStack Swift on `port` of loopback, its data below `folder`.

    Yields:
        The environment variables by which s3fs, boto3 and pyarrow reach it.
    """
    log = folder / "swift.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("swift_main.py")), str(folder), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(server, port, log)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "eagleray:tests",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait(60)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until it answers: /healthcheck is not served, and any answer of HTTP will do."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if connection.recv(5):
                return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"Swift did not start: {log.read_text()[-2000:]}")
