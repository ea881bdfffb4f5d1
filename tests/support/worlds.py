"""Runs a function on N ranks: processes forked from one that has imported torch already, so it is cheap."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["eagleray.training.worker_imports"])


def run_world(
    world_size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 150
) -> list[Any]:
    """`function(rank, world_size, *arguments)` on every rank, in the default gloo group; results by rank.

    Raises: AssertionError with the ranks' tracebacks where one failed or did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _CONTEXT.Process(target=_rank, args=(function, rank, world_size, folder, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout_s)
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        assert not late, f"ranks {late} did not end within {timeout_s} s"
        outcomes = [_read(Path(folder, f"result-{rank}")) for rank in range(world_size)]
    failed = [f"rank {rank}:\n{text}" for rank, (is_done, text) in enumerate(outcomes) if not is_done]
    assert not failed, "\n".join(failed)
    return [value for _, value in outcomes]


def _read(path: Path) -> tuple[bool, Any]:
    return pickle.loads(path.read_bytes()) if path.exists() else (False, "ended without a result")


def _rank(
    function: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    from eagleray import groups

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        groups.form(
            store_path=f"{folder}/store", rank=rank, world_size=world_size, backend="gloo", timeout_s=120
        )
        outcome = (True, function(rank, world_size, *arguments))
    except BaseException:
        outcome = (False, traceback.format_exc())
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(outcome))
