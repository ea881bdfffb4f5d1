"""Samples per second of torch alone, one thread: `python benchmarks/serving/raw.py MODEL BATCH SECONDS`."""

from __future__ import annotations

import json
import sys
import time

import torch
import workloads


def main() -> None:
    """Print what came of it as JSON."""
    name, batch, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    module = workloads.module(name)
    values = torch.from_numpy(workloads.samples(name, batch))
    with torch.inference_mode():
        for _ in range(3):
            module(values)
        began, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < seconds or count == 0:
            module(values)
            count += 1
    print(json.dumps({"samples_per_s": count * batch / taken, "batch_ms": taken / count * 1e3}))


if __name__ == "__main__":
    main()
