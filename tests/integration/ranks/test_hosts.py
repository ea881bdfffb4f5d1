"""Ranks on several hosts: gradients cross the links between them; a dead or cut-off host is noticed."""

from __future__ import annotations

import atexit
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.cluster import processes
from eagleray.errors import EaglerayError, PeerLost
from eagleray.specs.compression import CompressionSpec
from support import hosts

pytestmark = pytest.mark.root
WARM_STEPS = 20
LONG_S, LIMIT_S = 60.0, 2.5
BUSY_S = 20.0
"""What a busy machine may take on top, less than LONG_S; the times are printed."""
_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch._dynamo", "eagleray.training.worker_imports"])
T = TypeVar("T")


@dataclass(frozen=True)
class Warm:
    """What a rank says after its first steps."""

    weights: bytes
    stats: compression.Stats
    steps_per_s: float
    interfaces: tuple[str | None, str | None]


@dataclass(frozen=True)
class Ended:
    """Why and when (on the machine's clock) a rank stopped."""

    error: str
    message: str
    at_s: float


@dataclass
class Rank:
    """A process on a host, and what it says."""

    host: hosts.Host
    process: BaseProcess
    pipe: Any

    def hear(self, kind: type[T]) -> T:
        assert self.pipe.poll(LONG_S), f"nothing from the rank on {self.host.hostname} in {LONG_S:g} s"
        said = self.pipe.recv()
        assert isinstance(said, kind), f"{self.host.hostname}: {said}"
        return said


@pytest.fixture
def three_hosts() -> Iterator[list[hosts.Host]]:
    with hosts.hosts(3) as found:
        yield found


@contextmanager
def ranks_on(
    places: Sequence[hosts.Host], program: Callable[..., None], *arguments: Any
) -> Iterator[list[Rank]]:
    """`program(rank, rank 0's address, say, *arguments)` on each host; what it says can be heard."""
    started = []
    try:
        for number, host in enumerate(places):
            pipe, sender = _CONTEXT.Pipe(duplex=False)
            address = f"{places[0].address}:29400"
            process = _CONTEXT.Process(
                target=_rank, args=(host, program, number, address, sender, *arguments)
            )
            process.start()
            sender.close()
            started.append(Rank(host, process, pipe))
        yield started
    finally:
        for rank in started:
            rank.process.kill()
            rank.process.join()


def _rank(
    host: hosts.Host, program: Callable[..., None], rank: int, address: str, pipe: Connection, *arguments: Any
) -> None:
    host.enter()
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.pop(variable, None)
    torch.set_num_threads(1)
    try:
        program(rank, address, pipe.send, *arguments)
    except EaglerayError as error:
        pipe.send(Ended(type(error).__name__, str(error), time.monotonic()))
    time.sleep(600)  # alive, as a worker that waits for its controller


def form(rank: int, address: str, timeout_s: float, world_size: int = 3) -> groups.Group:
    return groups.form(address=address, rank=rank, world_size=world_size, backend="gloo", timeout_s=timeout_s)


def trains(rank: int, address: str, say: Callable[[Warm], None], exchange_limit_s: float) -> None:
    """Three ranks train until an exchange fails."""
    assert socket.gethostbyname(socket.gethostname()) == "127.0.1.1"
    form(rank, address, LONG_S)
    group = groups.new_group("gradients", backend="gloo", timeout_s=exchange_limit_s)
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
    model = DistributedDataParallel(net, bucket_cap_mb=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hook = compression.attach(model, compression.make_compressor(CompressionSpec(kind="bf16")), group)
    started = time.perf_counter()
    for step in range(1_000_000):
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
        if step + 1 == WARM_STEPS:
            weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
            steps_per_s = WARM_STEPS / (time.perf_counter() - started)
            names = (os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME"))
            say(Warm(weights.numpy().tobytes(), hook.stats(), steps_per_s, names))


def test_gradients_cross_three_hosts_and_a_kill_is_noticed(three_hosts: list[hosts.Host]) -> None:
    with ranks_on(three_hosts, trains, LONG_S) as ranks:
        warm = [rank.hear(Warm) for rank in ranks]
        print([f"{said.steps_per_s:.0f} steps/s" for said in warm])
        assert len({said.weights for said in warm}) == 1, "the ranks' weights are not bit-equal"
        for rank, said in zip(ranks, warm, strict=True):
            assert said.interfaces == ("eth0", "=eth0")
            assert 1.9 < said.stats.ratio < 2, "biases and headers"
            assert rank.host.sent_bytes() > said.stats.sent_bytes, "gradients went another way"
            listening = rank.host.listening()
            assert len(listening) >= 2, "the default group and that of the gradients"
            assert {address for address, _ in listening} == {rank.host.address}

        pid = ranks[2].process.pid
        assert pid is not None
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for number, rank in enumerate(ranks[:2]):
            ended = rank.hear(Ended)
            print(f"{rank.host.hostname} out after {ended.at_s - killed_s:.3f} s: {ended.message}")
            assert ended.error == "PeerLost"
            assert f"rank {number} of 3: exchanging gradients failed in step" in ended.message
            assert ended.at_s - killed_s < BUSY_S


def test_a_host_that_is_cut_off_is_noticed_by_the_time_limit(three_hosts: list[hosts.Host]) -> None:
    with ranks_on(three_hosts, trains, LIMIT_S) as ranks:
        for rank in ranks:
            rank.hear(Warm)
        cut_s = time.monotonic()
        three_hosts[1].cut()
        heard = [rank.hear(Ended) for rank in ranks]
        for rank, ended in zip(ranks, heard, strict=True):
            print(f"{rank.host.hostname} out after {ended.at_s - cut_s:.3f} s: {ended.message}")
            assert ended.error == "PeerLost"
            assert ended.at_s - cut_s < LIMIT_S + BUSY_S
        by_time = f"Timed out waiting {LIMIT_S * 1000:.0f}ms"
        assert any(by_time in ended.message for ended in heard), "nothing else can tell"


def ends_after_a_step(rank: int, address: str, say: Callable[[str], None], way: str) -> None:
    form(rank, address, LONG_S, world_size=2)
    model = DistributedDataParallel(nn.Linear(1000, 3000))
    hook = compression.attach(model, "none")
    model(torch.randn(4, 1000)).square().mean().backward()
    if way == "closed":
        hook.close()
    torch.distributed.destroy_process_group()
    say("trained")
    atexit._run_exitfuncs()
    os._exit(0)


@pytest.mark.parametrize("way", ["closed", "left to the process's end"])
def test_the_last_step_reaches_a_peer_over_a_slow_link(three_hosts: list[hosts.Host], way: str) -> None:
    three_hosts[0].throttle(100)  # 12 MB take 1 s, the peer's no time
    with ranks_on(three_hosts[:2], ends_after_a_step, way) as ranks:
        assert [rank.hear(str) for rank in ranks] == ["trained"] * 2


def meets(rank: int, address: str, say: Callable[[Any], None]) -> None:
    say(time.monotonic())
    form(rank, address, LIMIT_S)


def test_a_host_that_cannot_be_reached_is_waited_for_no_longer_than_said(
    three_hosts: list[hosts.Host],
) -> None:
    three_hosts[0].cut()
    with ranks_on(three_hosts, meets) as ranks:
        for number, rank in enumerate(ranks):
            began_s, ended = rank.hear(float), rank.hear(Ended)
            print(f"{rank.host.hostname} out after {ended.at_s - began_s:.3f} s: {ended.message}")
            assert ended.error == "PeerLost"
            where = f"at 10.77.0.1:29400 in {LIMIT_S:g} s"
            assert f"rank {number} of 3 could not meet the others {where}" in ended.message
            assert ended.at_s - began_s < LIMIT_S + BUSY_S


def has_no_way(rank: int, address: str, say: Callable[[Any], None]) -> None:
    with pytest.raises(PeerLost, match=r"at 10\.78\.0\.1:29400 in 60 s: .*unreachable"):
        form(1, "10.78.0.1:29400", LONG_S)
    with socket.create_server(("10.77.0.1", 29400)), pytest.raises(PeerLost, match="already in use"):
        form(0, address, LONG_S)
    say("done")


def test_no_route_and_a_port_in_use_are_said_at_once(three_hosts: list[hosts.Host]) -> None:
    with ranks_on(three_hosts[:1], has_no_way) as (rank,):
        rank.hear(str)


KILLED = """
import os, signal, subprocess
from support import hosts
with hosts.hosts(1) as (host,):
    (host.folder / "file").touch()
    null = subprocess.DEVNULL
    subprocess.Popen(host.command("sleep", "1000"), stdout=null, stderr=null)
    print(host.namespace, host.folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_of_its_hosts_is_removed() -> None:
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    namespace, folder = printed.split()
    left = hosts.Host(namespace, "h1", "10.77.0.1", Path(folder))
    assert processes.wait_until(lambda: len(left.processes()) == 1, timeout_s=60)
    (sleeping,) = left.processes()
    hosts.remove_leftovers()
    assert not sleeping.is_alive
    assert not left.folder.exists()
    assert namespace not in subprocess.check_output(["ip", "netns"], text=True)
