"""A Ray cluster by `ray start`, as an administrator would make it, over two hosts of support.hosts."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from eagleray.cluster import processes, profiles
from support.hosts import Host

GCS, DASHBOARD, AGENT = 6379, 8265, 6384
# The same numbers on both hosts.
PORTS = {
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "runtime-env-agent-port": 6382,
    "dashboard-agent-grpc-port": 6383,
    "dashboard-agent-listen-port": AGENT,
    "metrics-export-port": 6385,
}


class RayHosts:
    """A head and one more machine."""

    def __init__(self, head: Host, other: Host, profile: str = "default") -> None:
        self.head, self.other, self.profile = head, other, profiles.named(profile)
        self.shared: Path = head.folder.parent / "shared"
        """What both see: the token, storage, MLflow's database."""
        self.shared.mkdir(mode=0o700)
        (self.shared / "token").touch(mode=0o600)
        (self.shared / "token").write_text(secrets.token_hex(32))

    def env(self, host: Host) -> dict[str, str]:
        """Of the administrator's shell there."""
        mine = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_", "EAGLERAY_", "PYTHON"))
        }
        return {
            **mine,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}",
            "TMPDIR": str(host.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.shared / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            **self.profile.environment(),
            "EAGLERAY_HOME": str(host.folder / "home"),  # of a user of that machine
            "EAGLERAY_STORAGE": str(self.shared / "storage"),
            "EAGLERAY_TRACKING_URI": f"sqlite:///{self.shared}/mlflow.db",
        }

    def start(self) -> None:
        """Start Ray on the head, then on the other host."""
        dashboard = (f"--dashboard-host={self.head.address}", f"--dashboard-port={DASHBOARD}")
        self._start(self.head, self._ray_start(self.head, "--head", f"--port={GCS}", *dashboard))
        self.start_other()

    def start_other(self, *before: str) -> None:
        """Start Ray on the other host; the words `before` come in front of `ray start`."""
        join = f"--address={self.head.address}:{GCS}"
        self._start(self.other, [*before, *self._ray_start(self.other, join)])

    def _ray_start(self, host: Host, *arguments: str) -> list[str]:
        return [
            "ray", "start", *arguments, f"--node-ip-address={host.address}", f"--temp-dir={host.folder}/ray",
            "--num-cpus=2", "--num-gpus=1", "--labels=eagleray.io/pool=train", "--disable-usage-stats",
            f"--object-store-memory={100 * 2**20}", f"--memory={4 * 2**30}",
            *(f"--{name}={port}" for name, port in PORTS.items()),
        ]  # fmt: skip

    def _start(self, host: Host, command: Sequence[str]) -> None:
        for is_last in (False, False, True):
            try:
                host.run(*command, env=self.env(host), timeout_s=130)
                break
            except AssertionError:  # it gives up after 30 s, which a busy machine needs, and leaves processes
                host.kill_all()
                if is_last:
                    raise
        awaited = {AGENT} | ({GCS, DASHBOARD} if host is self.head else set())
        assert processes.wait_until(
            lambda: awaited <= {port for _, port in host.listening()}, timeout_s=60, interval_s=0.2
        ), f"{host.hostname}: {host.listening()}"
