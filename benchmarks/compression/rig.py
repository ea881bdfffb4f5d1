"""The rig: hosts on one machine with links of a given rate, and one worker on each.

A failure or a hang costs the crew, not the run: `Crew.call` raises, and `Crew.restart` starts it again.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Last: one of its files is called as one of Python's own.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from kit import checkout

# The fork server preloads before it has our sys.path.
checkout.use(checkout.TESTS, Path(__file__).resolve().parent, is_for_children=True)
START_S = 60.0


class SchemeFailed(Exception):
    """A worker said why, or did not answer in time; the crew is of no use any more."""


def missing() -> str | None:
    """What this machine lacks for the rig, in one line."""
    if os.geteuid() != 0:
        return "the rig makes network namespaces and shapes their links: run it as root (sudo -E make ...)"
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            return f"the rig needs `{tool}`: apt install iproute2 util-linux"
    return None


def build_kernels() -> str | None:
    """Compile the codecs once, before workers with time limits want them; returns why where that fails."""
    from eagleray.compression.kernels import build

    try:
        build.library()
    except build.BuildError as error:
        return f"codecs are not compiled, torch operations stand in: {error}"
    return None


@contextmanager
def hosts(count: int) -> Iterator[list[Any]]:
    """Hosts that reach each other over a bridge; removed at the end, and so are those of killed runs."""
    from support import hosts as namespaces

    with namespaces.hosts(count) as found:
        yield found


def shape(host: Any, rate_mbit: float | None) -> None:
    """Limit both ends of the host's cable to a rate; None: no limit.

    A bucket of 128 kB and a queue of 200 ms, as in the research; more where the rate would empty it sooner
    than timers run.
    """
    from support import hosts as namespaces

    for namespace, interface in namespaces.ends_of(host):
        device = ["ip", "netns", "exec", namespace, "tc", "qdisc"]
        if rate_mbit is None:
            subprocess.run([*device, "del", "dev", interface, "root"], stderr=subprocess.DEVNULL, check=False)
            continue
        burst = max(128 << 10, int(rate_mbit * 1e6 / 8 * 250e-6))
        limits = ["rate", f"{rate_mbit:g}mbit", "burst", f"{burst}b", "latency", "200ms"]
        subprocess.run([*device, "replace", "dev", interface, "root", "tbf", *limits], check=True)


class Crew:
    """One worker per host, started once for a link; on this machine itself where `hosts` is a number."""

    def __init__(self, places: list[Any] | int):
        os.environ["OMP_NUM_THREADS"] = "1"
        self._hosts: list[Any] = [None] * places if isinstance(places, int) else places
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["torch._dynamo", "torch.nn.parallel", "eagleray.compression"])
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._generation = 0
        self.kept: set[str] = set()
        """Contestants that the workers have and that others will be compared with."""
        self._folder = tempfile.TemporaryDirectory(prefix="eagleray-bench-")
        self.restart()

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._hosts)

    def restart(self) -> None:
        """End the workers, if there are any, and start new ones: all contestants are gone."""
        import worker

        self.close()
        port = worker.PORT + self._generation % 1000
        if self._hosts[0] is None:
            port = _free_port()
        self._generation += 1
        address = f"{'127.0.0.1' if self._hosts[0] is None else self._hosts[0].address}:{port}"
        for rank, host in enumerate(self._hosts):
            ours, theirs = self._context.Pipe()
            arguments = (theirs, host, address, rank, self.size, str(self._errors(rank)))
            process = self._context.Process(target=worker.main, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        self._collect(START_S)

    def call(self, name: str, *arguments: Any, limit_s: float) -> list[Any]:
        """What each worker answers, by rank.

        Raises: SchemeFailed: one raised, died, or did not answer within `limit_s` seconds.
        """
        for _, pipe in self._workers:
            try:
                pipe.send((name, arguments))
            except OSError as error:
                raise SchemeFailed(f"a worker is gone: {error}") from error
        return self._collect(limit_s)

    def close(self) -> None:
        """End the workers by SIGKILL: what they do is of no use any more."""
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()
        self._workers = []
        self.kept = set()

    def _errors(self, rank: int) -> Path:
        return Path(self._folder.name, f"stderr-{rank}")

    def _death(self, rank: int) -> str:
        """Why a worker is gone: what gloo said, which throws on threads of its own, or the exit code."""
        process = self._workers[rank][0]
        process.join(5)
        said = self._errors(rank).read_text(errors="replace").splitlines()
        reasons = [line.partition("what():")[2].strip() for line in said if "what():" in line]
        reason = f": {reasons[0].rpartition('/')[2]}" if reasons else ""
        return f"rank {rank} died (exit code {process.exitcode}){reason}"[:220]

    def _collect(self, limit_s: float) -> list[Any]:
        deadline = time.monotonic() + limit_s
        open_pipes = {pipe: rank for rank, (_, pipe) in enumerate(self._workers)}
        answers: dict[int, Any] = {}
        while open_pipes:
            ready = wait(list(open_pipes), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise SchemeFailed(f"hangs: no answer in {limit_s:.0f} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = open_pipes.pop(pipe)
                try:
                    state, answers[rank] = pipe.recv()
                except (EOFError, OSError):
                    raise SchemeFailed(self._death(rank)) from None
                if state == "error":
                    time.sleep(0.3)  # where another died of an abort, that is the reason
                    for other, (process, _) in enumerate(self._workers):
                        if not process.is_alive():
                            raise SchemeFailed(self._death(other))
                    raise SchemeFailed(answers[rank])
        return [answers[rank] for rank in range(self.size)]


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
