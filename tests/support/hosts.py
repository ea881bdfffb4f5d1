"""Several hosts on one machine: a network namespace each, joined by a bridge that has a namespace of its own.

Every name and address lies inside these namespaces, so nothing clashes with the machine or with another run
beside this one, and removing them removes all. A host has a hostname of its own that resolves to 127.0.1.1,
as on Debian: whoever listens on what the hostname resolves to cannot be reached from other hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eagleray.cluster import processes

_NAMESPACES = Path("/run/netns")  # where iproute2 keeps them
_FILES = Path("/etc/netns")  # `ip netns exec` puts <name>/hosts in the place of /etc/hosts
_NETWORK = re.compile(r"egl-(\d+)-(\d+)-\d+")  # pid and start time of the process that made it, number
_SCRATCH = Path(tempfile.gettempdir())
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_LISTEN = "0A"
_ESTABLISHED = "01"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    """One namespace with a loopback and an `eth0` towards the others."""

    namespace: str
    hostname: str
    address: str
    """Of `eth0`, which every other host reaches."""
    folder: Path
    """Of this host alone, 0700, with a path of at most 30 characters; gone with the host."""

    def command(self, *argv: str) -> list[str]:
        """What runs `argv` on this host, as a command for subprocess."""
        named = 'echo "$0" >/proc/sys/kernel/hostname; exec "$@"'
        unshare = ("unshare", "--uts", "sh", "-c", named, self.hostname)
        return ["ip", "netns", "exec", self.namespace, *unshare, *argv]

    def run(self, *argv: str, env: Mapping[str, str] | None = None, timeout_s: float = 60) -> str:
        """What `argv` prints on this host. Raises: AssertionError with all of it where it fails."""
        done = subprocess.run(
            self.command(*argv),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(argv)} on {self.hostname}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def enter(self) -> None:
        """Bring this process here, for good; it must have one thread only (a process just forked has)."""
        with (_NAMESPACES / self.namespace).open() as namespace:
            _call("setns", namespace.fileno(), _CLONE_NEWNET)
        _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS)
        _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        source = bytes(_FILES / self.namespace / "hosts")
        _call("mount", source, b"/etc/hosts", None, ctypes.c_ulong(_MS_BIND), None)
        socket.sethostname(self.hostname)

    def listening(self, pid: int | None = None) -> set[tuple[str, int]]:
        """Numeric address and port of every TCP socket that listens here, or of those that `pid` holds."""
        table = _ip("netns", "exec", self.namespace, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        fields = [found for line in table.splitlines() if (found := line.split())[3] == _LISTEN]
        if pid is not None:
            held = _sockets_of(pid)
            fields = [found for found in fields if found[9] in held]
        return {_endpoint(found[1]) for found in fields}

    def peers(self, pid: int, port: int) -> set[str]:
        """Numeric addresses of those that have a TCP connection to a port of this process."""
        table = _ip("netns", "exec", self.namespace, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        held, found = _sockets_of(pid), set[str]()
        for fields in map(str.split, table.splitlines()):
            if fields[3] == _ESTABLISHED and fields[9] in held and _endpoint(fields[1])[1] == port:
                found.add(_endpoint(fields[2])[0].removeprefix("::ffff:"))
        return found

    def sent_bytes(self) -> int:
        """What went out of `eth0` so far, headers included."""
        table = _ip("netns", "exec", self.namespace, "cat", "/proc/net/dev")
        line = next(line for line in table.splitlines() if line.strip().startswith("eth0:"))
        return int(line.split()[9])

    def processes(self) -> list[processes.Process]:
        """What runs here."""
        found = [processes.of(int(pid)) for pid in _ip("netns", "pids", self.namespace).split()]
        return [process for process in found if process.start]

    def kill_all(self) -> None:
        """End all that runs here by SIGKILL, as a loss of power would."""
        processes.sweep(self.processes, grace_s=0.0)

    def cut(self) -> None:
        """Cut the cable: nothing leaves or arrives, and nobody is told (no RST)."""
        self._switch("down")

    def mend(self) -> None:
        """Plug the cable in again."""
        self._switch("up")

    def throttle(self, rate_mbit: int) -> None:
        """Limit what leaves this host to a rate; a message waits in its sender then."""
        limits = ("rate", f"{rate_mbit}mbit", "burst", "128kb", "latency", "200ms")
        tc = ("ip", "netns", "exec", self.namespace, "tc")
        subprocess.run([*tc, "qdisc", "add", "dev", "eth0", "root", "tbf", *limits], check=True)

    def _switch(self, state: str) -> None:
        _ip("-n", _switch_of(self.namespace), "link", "set", _port_of(self.namespace), state)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts that reach each other; everything that still runs on one is killed at the end.

    What a killed run left behind is removed first.
    """
    remove_leftovers()
    me = processes.this_process()
    candidates = (f"egl-{me.pid}-{me.start}-{number}" for number in range(1000))
    network = next(name for name in candidates if name not in _networks())
    try:
        _ip("netns", "add", _switch_of(network))
        for command in ("link add switch type bridge", "link set switch up", "link set lo up"):
            _ip("-n", _switch_of(network), *command.split())
        yield [_add_host(network, number) for number in range(1, count + 1)]
    finally:
        _remove(network)


def ends_of(host: Host) -> list[tuple[str, str]]:
    """Namespace and interface of both ends of the host's cable: its own, and the bridge's."""
    return [(host.namespace, "eth0"), (_switch_of(host.namespace), _port_of(host.namespace))]


def remove_leftovers() -> None:
    """End the hosts of runs that were killed."""
    for network in _networks():
        found = _NETWORK.fullmatch(network)
        assert found is not None
        if not processes.Process(int(found[1]), int(found[2])).is_alive:
            _remove(network)


def _add_host(network: str, number: int) -> Host:
    name = f"{network}-h{number}"
    host = Host(name, f"h{number}", f"10.77.0.{number}", _scratch(network) / f"h{number}")
    host.folder.mkdir(mode=0o700, parents=True)
    (_FILES / name).mkdir(parents=True)
    (_FILES / name / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.hostname}\n")
    _ip("netns", "add", name)
    switch, port = _switch_of(name), _port_of(name)
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", switch, "link", "set", port, "master", "switch", "up")
    for command in ("link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"):
        _ip("-n", name, *command.split())
    return host


def _remove(network: str) -> None:
    """Kill what runs in the namespaces of `network`, and remove them with their files."""
    mine = [name for name in _names() if _network_of(name) == network]
    present = [name for name in mine if (_NAMESPACES / name).exists()]

    def running() -> list[processes.Process]:
        pids = (pid for name in present for pid in _ip("netns", "pids", name).split())
        return [process for process in map(processes.of, map(int, pids)) if process.start]

    processes.sweep(running, grace_s=0.0)
    for name in present:
        _ip("netns", "del", name)
    for name in mine:
        shutil.rmtree(_FILES / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # the machine has files of its own there, or the folder is gone
        _FILES.rmdir()
    shutil.rmtree(_scratch(network), ignore_errors=True)


def _networks() -> set[str]:
    """All that have a namespace, a file or a folder."""
    return {_network_of(name) for name in _names()}


def _names() -> set[str]:
    """Names of ours among the namespaces, the files for them, and the scratch folders."""
    folders = (_NAMESPACES, _FILES, _SCRATCH)
    entries = (path.name for folder in folders if folder.exists() for path in folder.iterdir())
    return {name for name in entries if _NETWORK.match(name)}


def _network_of(name: str) -> str:
    """The network that a namespace belongs to."""
    found = _NETWORK.match(name)
    assert found is not None, name
    return found[0]


def _switch_of(name: str) -> str:
    return f"{_network_of(name)}-switch"


def _port_of(name: str) -> str:
    """Name of the host's end in the switch."""
    return f"to-{name.rpartition('-')[2]}"


def _scratch(network: str) -> Path:
    return _SCRATCH / network


def _sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in between
            found.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    return found


def _endpoint(field: str) -> tuple[str, int]:
    """Address and port of a field of /proc/net/tcp: words of 32 bits in the machine's byte order."""
    address, _, port = field.partition(":")
    packed = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed), int(port, 16)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def _call(name: str, *arguments: object) -> None:
    """A call of the C library that returns 0 for success."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
