"""Process groups: how they form, where they listen, what breaks them."""

import socket
import threading
import time

import pytest
import torch
import torch.distributed as dist

from eagleray import groups
from eagleray.errors import PeerLost
from eagleray.groups import connections, making
from support.worlds import run_world


def reduce(group):
    value = torch.ones(1)
    group.process_group.allreduce([value]).wait()
    return float(value)


def forms_over_tcp(rank, world_size, address):
    dist.destroy_process_group()  # the one that run_world made
    making._open_groups.clear()
    group = groups.form(address=address, rank=rank, world_size=world_size, backend="gloo", timeout_s=120)
    assert (group.name, group.rank, group.world_size, group.backend) == ("default", rank, world_size, "gloo")
    more = groups.new_group("more", backend="gloo", timeout_s=120)
    assert len(group.endpoints | more.endpoints) == 2 * world_size
    assert reduce(group) == reduce(more) == world_size
    listening = {ip for _, (ip, _) in connections.listening_endpoints()}
    groups.close(more)
    groups.close(more)
    groups.close(group)
    return listening


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_group_over_tcp_listens_on_loopback_only():
    assert run_world(3, forms_over_tcp, free_address()) == [{"127.0.0.1"}] * 3


def is_broken_by_a_peer(rank, world_size):
    """Ranks 0 and 1 wait for rank 2 in different groups; what rank 2 does wakes them both."""
    first = groups.new_group("first", backend="gloo", timeout_s=60)
    second = groups.new_group("second", backend="gloo", timeout_s=60)
    bystander = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(bystander.getsockname())
    server, _ = bystander.accept()
    dist.barrier()
    started = time.monotonic()
    if rank == 2:
        assert groups.break_groups() > 0
        assert groups.break_groups() >= 0
    else:
        with pytest.raises(RuntimeError):
            reduce((first, second)[rank])
    assert time.monotonic() - started < 30, "the time limit woke it, not the peer"
    client.sendall(b"unharmed")
    assert server.recv(8) == b"unharmed"
    for one in (client, server, bystander):
        one.close()


def test_breaking_wakes_peers_in_every_group_and_leaves_other_sockets_alone():
    run_world(3, is_broken_by_a_peer)


def is_broken_from_another_thread(rank, world_size):
    group = groups.new_group("gradients", backend="gloo", timeout_s=60)
    if rank == 0:
        timer = threading.Timer(0.2, groups.break_groups)
        timer.start()
        with pytest.raises(RuntimeError):
            reduce(group)
        timer.join()
    else:
        socket_ends = [connection for _, connection in connections.sockets()]
        assert socket_ends
        buffer = torch.ones(1)
        with pytest.raises(RuntimeError):
            group.process_group.recv([buffer], 0, 9).wait()
    groups.close(group)


def test_breaking_from_another_thread_wakes_this_one():
    run_world(2, is_broken_from_another_thread)


def loses_the_others_within_a_message(rank, world_size):
    group = groups.new_group("states", backend="gloo", timeout_s=600)
    values = torch.full((1 << 27,), rank, dtype=torch.uint8)
    options = dist.BroadcastOptions()
    options.rootRank = 1
    dist.barrier()
    work = group.process_group.broadcast([values], options)

    def break_it():
        while not values[0]:
            time.sleep(0)
        groups.break_groups()

    timer = threading.Thread(target=break_it) if rank == 0 else threading.Timer(0.5, groups.break_groups)
    timer.start()
    with pytest.raises(RuntimeError):
        groups.await_work(work, group)
    timer.join()
    assert rank or not values[-1], "it had come in one piece: nothing was tested"
    started = time.monotonic()
    groups.close(group)
    return time.monotonic() - started


def test_who_has_a_message_in_part_is_woken_too():
    """gloo forgets such a receive, and such a send: without more these ranks would wait for 600 s."""
    assert max(run_world(2, loses_the_others_within_a_message)) < 30


def test_one_of_store_path_and_address(tmp_path):
    for wrong in ({}, {"store_path": str(tmp_path / "s"), "address": "127.0.0.1:1"}):
        with pytest.raises(ValueError, match="either"):
            groups.form(rank=0, world_size=1, backend="gloo", timeout_s=1, **wrong)


@pytest.fixture
def stores(monkeypatch):
    """The time limits of the clients' stores that torch was asked for; none is made."""
    limits_s = []

    def refuse(host, port, world_size, is_server, timeout, **_):
        limits_s.append(timeout.total_seconds())
        raise RuntimeError("no store")

    monkeypatch.setattr(dist, "TCPStore", refuse)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(variable, "lo")
    return limits_s


def test_where_nobody_listens_the_wait_is_ours_and_ends_in_time(stores):
    began = time.monotonic()
    with pytest.raises(PeerLost, match=r"rank 1 of 2 could not meet the others at 127.* in 0\.5 s: "):
        groups.form(address=free_address(), rank=1, world_size=2, backend="gloo", timeout_s=0.5)
    print(f"out after {time.monotonic() - began:.3f} s")
    assert not stores, "torch's own wait comes on top"


def test_what_rank_0_took_to_come_is_taken_off_the_time_limit(stores, monkeypatch):
    address, late_s, sleep = free_address(), 0.2, time.sleep
    servers = []

    def rank_0_comes(pause_s):
        """In place of the first pause, so after the first try."""
        sleep(max(pause_s, late_s))
        if not servers:
            host, port = address.split(":")
            servers.append(socket.create_server((host, int(port))))

    monkeypatch.setattr(time, "sleep", rank_0_comes)
    with pytest.raises(PeerLost, match="no store"):
        groups.form(address=address, rank=1, world_size=2, backend="gloo", timeout_s=60)
    servers[0].close()
    (limit_s,) = stores
    assert limit_s <= 60 - late_s


def test_what_torch_tells_of_a_connection_is_a_lost_peer_and_nothing_else_is():
    told = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:1"
    with pytest.raises(PeerLost, match="closed by peer"), groups.telling_losses():
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="another matter"), groups.telling_losses():
        raise RuntimeError("another matter")


def test_waiting_for_rank_0_to_listen_can_be_broken(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: groups.break_groups())  # in place of the first pause
    with pytest.raises(PeerLost, match="broken before it was formed"), groups.forming():
        groups.form(address=free_address(), rank=1, world_size=2, backend="gloo", timeout_s=600)


def waits_for_a_missing_rank(rank, world_size, store_path):
    dist.destroy_process_group()
    making._open_groups.clear()
    with pytest.raises(PeerLost, match=r"rank 0 of 2 could not meet the others at .*store in 1 s"):
        groups.form(store_path=store_path, rank=0, world_size=2, backend="gloo", timeout_s=1)


def test_a_rank_that_never_comes_is_reported(tmp_path):
    run_world(1, waits_for_a_missing_rank, str(tmp_path / "store"))
