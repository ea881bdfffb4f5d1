"""Importing this imports all that a rank needs: what a new worker process does ahead of time."""

import importlib

from eagleray.training import loop, state, worker

# DistributedDataParallel's constructor needs it: 1.7 s that would else fall between group and first step.
importlib.import_module("torch._dynamo")

__all__ = ["loop", "state", "worker"]
