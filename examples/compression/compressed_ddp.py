"""`plain_ddp.py` with its gradients compressed: two lines more, and some that say what they saved, and why.

    torchrun --nproc-per-node 2 examples/compression/compressed_ddp.py
    COMPRESSION=ternary:Ternary torchrun --nproc-per-node 2 examples/compression/compressed_ddp.py

COMPRESSION is a kind of docs/compression.md (int8 where it is not set; auto measures the network and
chooses), or `module:name` of a compressor of your own.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression

STEPS = int(os.environ.get("STEPS", "150"))
BATCH = 32


def main() -> None:
    """Train on this rank's share, and say what came of it."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    x, y = map(torch.from_numpy, load_digits(return_X_y=True))
    x = x.float() / 16
    is_test = torch.arange(len(x)) % 5 == 0
    train_x, train_y = x[~is_test][rank::world_size], y[~is_test][rank::world_size]

    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    hook = compression.attach(model, os.environ.get("COMPRESSION", "int8"), optimizer=optimizer)

    batches = torch.Generator().manual_seed(rank)
    for step in range(1, STEPS + 1):
        picked = torch.randint(len(train_x), (BATCH,), generator=batches)
        loss = nn.functional.cross_entropy(model(train_x[picked]), train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    accuracy = (net(x[is_test]).argmax(1) == y[is_test]).float().mean().item()
    if rank == 0:
        print(f"test accuracy {accuracy:.1%}")
        stats = hook.stats()
        sent, plain = stats.sent_bytes / 1e6, stats.uncompressed_bytes / 1e6
        print(f"compression {hook.compressor.name}: sent {sent:.1f} MB in place of {plain:.1f} MB")
        if choice := hook.choice():  # of auto
            print(choice.reason)
    hook.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
