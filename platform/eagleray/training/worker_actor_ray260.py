"""Ray Train's own worker as an actor that the driver can make without importing ray.train or torch.

Its class is looked up inside its process, so workers import what they need while the driver does the same.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

import ray

WORKER_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # a user's print would come out twice
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # a lost rank 0 is said in a sentence, not in pages of C++ frames
}

ORDERS = "orders"
"""Name of the threads in which an actor hears the driver while its main one does something else."""
NUM_ORDER_THREADS = 4


class WorkerActor:
    """Ray Train's `RayTrainWorker`, with everything that a rank imports imported at construction."""

    def __init__(self) -> None:
        os.environ.update(WORKER_SETTINGS)  # read when ray.train is imported
        importlib.import_module("eagleray.training.worker_imports")
        from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

        self._worker = RayTrainWorker()

    def execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `fn` in the worker's main thread."""
        return self._worker.execute(fn, *args, **kwargs)

    def run_train_fn(self, train_fn_ref: Any) -> None:
        """Start the train function in a thread."""
        return self._worker.run_train_fn(train_fn_ref)

    def get_metadata(self) -> Any:
        """Host, node and process id."""
        return self._worker.get_metadata()

    def mark_preempt(self, info: Any) -> None:
        """Take a preemption notice."""
        return self._worker.mark_preempt(info)

    def poll_status(self) -> Any:
        """Whether the train function runs, failed, or reported."""
        return self._worker.poll_status()

    def clear_result_queue(self) -> bool:
        """Drop pending reports."""
        return self._worker.clear_result_queue()

    def shutdown(self) -> None:
        """Run the shutdown hooks."""
        return self._worker.shutdown()

    @ray.method(concurrency_group=ORDERS)
    def form(self, formation: Any) -> None:
        """See `station.Station`."""
        _station().form(formation)

    @ray.method(concurrency_group=ORDERS)
    def notice(self, number: int) -> None:
        """See `station.Station`."""
        _station().notice(number)

    @ray.method(concurrency_group=ORDERS)
    def news(self) -> Any:
        """See `station.Station`."""
        return _station().news()

    @ray.method(concurrency_group=ORDERS)
    def break_groups(self) -> int:
        """Wake the train function wherever it waits for other ranks."""
        from eagleray import groups

        return groups.break_groups()

    def init_train_context(self, **context: Any) -> None:
        """Take rank, world size and storage of this attempt."""
        self._worker.init_train_context(**context)
        _quiet()


def _station() -> Any:
    from eagleray.training.station import STATION

    return STATION


def _quiet() -> None:
    """Keep two of Ray Train's loggers out of the job's log; they are in no hierarchy that could be set.

    One says a line per rank and checkpoint; the other a traceback for each error, which our driver says in
    one line, or shows by itself where the error is not ours.
    """
    from ray.train.v2._internal import util
    from ray.train.v2._internal.execution import context

    context.logger.setLevel(logging.WARNING)
    util.logger.setLevel(logging.CRITICAL)
