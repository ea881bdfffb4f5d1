"""A world of ranks that train without end, and say when and why they stopped."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.errors import EaglerayError
from eagleray.specs.compression import CompressionSpec
from eagleray.training.agreement import Agreement

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch._dynamo", "eagleray.training.worker_imports"])
WARM_STEPS = 3


@contextmanager
def training_world(
    world_size: int, kind: str, *, votes: bool = False, timeout_s: float = 60
) -> Iterator[tuple[list[mp.process.BaseProcess], list[Connection]]]:
    """Processes by rank, once all have taken WARM_STEPS steps, and a pipe from each.

    `timeout_s` is that of an exchange.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            _CONTEXT.Process(target=_train, args=(rank, world_size, store, kind, votes, timeout_s, sender))
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        try:
            for receiver, _ in pipes:
                assert receiver.poll(100), "no first steps within 100 s"
                assert receiver.recv() == "warm"
            yield processes, [receiver for receiver, _ in pipes]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _train(rank, world_size, store, kind, votes, timeout_s, sender) -> None:
    """Send "warm", then the error's type and message, and when it was raised and the hook closed."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    groups.form(store_path=store, rank=rank, world_size=world_size, backend="gloo", timeout_s=120)
    group = groups.new_group("gradients", backend="gloo", timeout_s=timeout_s)
    agreement = Agreement(groups.new_group("votes", backend="gloo", timeout_s=timeout_s))
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
    model = DistributedDataParallel(net, bucket_cap_mb=0.25)
    hook = compression.attach(model, compression.make_compressor(CompressionSpec(kind=kind)), group)
    x = torch.randn(32, 64)
    try:
        for step in range(1_000_000):
            model.zero_grad()
            model(x).square().mean().backward()
            if votes:
                agreement.vote(stop=False, num_next=1, consumed=[]).result()
            if step == WARM_STEPS:
                sender.send("warm")
    except EaglerayError as error:
        raised = time.monotonic()
        hook.close()
        sender.send((type(error).__name__, str(error), raised, time.monotonic()))
    time.sleep(600)  # alive, as a worker that waits for its controller: its open sockets must not matter
