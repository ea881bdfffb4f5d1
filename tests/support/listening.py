"""What the processes of a cluster listen on, beside the table of docs/security.md."""

from __future__ import annotations

import os
import re
import socket
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from eagleray.cluster import processes, state

SECURITY = Path(__file__).parents[2] / "docs/security.md"
KINDS = {
    "node raylet": r"\S*/raylet ",
    "node agent": r"ray::DashboardAgent|\S*python\S* .*/dashboard/agent\.py ",
    "node runtime env agent": r"ray::RuntimeEnvAgent|\S*python\S* .*/runtime_env/agent/main\.py ",
    "gateway": r"ray::ServeReplica:ingress:",
    "replica": r"ray::ServeReplica:m--",
    "worker": r"ray::|\S*python\S* .*/workers/default_worker\.py ",
}
"""Rows for processes whose ports Ray or the kernel picks; what their command lines start with."""
COUNTED = ("gateway", "replica")
"""Of these each row is one port of a process, so that one too many is noticed."""
DRIVER = "driver"


@dataclass
class Compared:
    """The listeners of a cluster beside the table."""

    seen: set[str | None] = field(default_factory=set)
    """Rows that some listener belongs to."""
    without_row: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    """Of loopback."""


def table() -> list[str]:
    """The name of each row."""
    return re.findall(r"^\| `([a-z_ ]+)`", SECURITY.read_text(encoding="utf-8"), re.MULTILINE)


def compared(cluster: state.ClusterState) -> Compared:
    """Every TCP listener of the cluster's processes, looked up in the table."""
    names, found = table(), Compared()
    counted: dict[tuple[int, str], set[int]] = defaultdict(set)
    for pid, host, port in _listeners({process.pid for process in processes.belonging(cluster.marker)}):
        command, is_driver = _process(pid)
        fixed = next((name for name, number in cluster.ports.items() if number == port), None)
        name = fixed or kind(command) or (DRIVER if is_driver else None)
        said = f"process {pid}: {command[:120]}"
        found.seen.add(name)
        if name not in names:
            found.without_row.append(f"{host}:{port} of {said}")
        elif name in COUNTED:
            counted[pid, name].add(port)
            if len(counted[pid, name]) > names.count(name):
                found.without_row.append(f"{host}:{port}, one more than {name!r} has rows, of {said}")
        if not state.is_loopback(host):
            found.beyond.append(f"{host}:{port} ({name}) of {said}")
    return found


def kind(command: str) -> str | None:
    """The row of a process whose ports are not fixed."""
    return next((name for name, start in KINDS.items() if re.match(start, command)), None)


def _process(pid: int) -> tuple[str, bool]:
    """Its command line, and whether it is a job's driver."""
    folder = Path(f"/proc/{pid}")
    try:
        command = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        return command, b"RAY_JOB_CONFIG_JSON_ENV_VAR=" in (folder / "environ").read_bytes()
    except OSError:
        return "(ended)", False


def _listeners(pids: set[int]) -> set[tuple[int, str, int]]:
    """(pid, address, port) of every TCP socket in state LISTEN that one of these processes holds."""
    owners = {}
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            except OSError:
                continue
            if found:
                owners[found[1]] = pid
    return {
        (owners[fields[9]], *_address(fields[1]))
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and fields[9] in owners
    }


def _address(text: str) -> tuple[str, int]:
    raw, port = text.split(":")
    words = b"".join(bytes.fromhex(raw[i : i + 8])[::-1] for i in range(0, len(raw), 8))
    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, words).removeprefix("::ffff:")
    return host, int(port, 16)
