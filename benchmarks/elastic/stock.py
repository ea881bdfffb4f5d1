"""Stock Ray 2.60 at the same sizes: ray.train's own elastic trainer over plain DDP, the same model and batch.

Its best settings (research/platform.md): a health check every 0.5 s, resizes as soon as resources change, 8 s
for a group to start. A planned resize is a claim on its autoscaling coordinator, which is how its trainer
hears that others want resources. Rank 0 writes the time of each step into a file.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workloads
from kit.results import RowFailed
from messages import Teller
from passages import is_one_group
from trial import NewNodes, connect

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
LIMIT_S = 240.0
SETTLED_STEPS = 25
CLAIM_S = 120.0
NODES = 4
"""All that the cluster can have. While one is missing, stock would begin on the first that comes, and a claim
would start one that it grows onto."""


def resize(tell: Teller, reps: int, *, large: int, small: int) -> None:
    """As `resizes.resize`, but that a repetition is one change: down, up, down."""
    run = Stock(large)
    tell.note("starting the run")
    run.settle(large)
    for number in range(reps):
        size = (small, large)[number % 2]
        values = run.passage(run.leave(size), size)
        tell.repetition(to=size, **values)
        said = f"to {size} workers, {values['pause_s']:.1f} s, {values['lost']} steps redone"
        tell.note(f"{number + 1}/{reps}: {said}")
        if number + 1 < reps:
            run.settle(size)


def worker(tell: Teller, reps: int) -> None:
    """As `losses.worker`: SIGKILL for one of three; stock starts all of them again."""
    run = Stock(3)
    tell.note("starting the run")
    run.settle(3)
    for number in range(reps):
        at = run.kill()
        values = run.passage(at, None)
        tell.repetition(recovery_s=values["first_at"] - at, **values)
        tell.note(f"{number + 1}/{reps}: {values['first_at'] - at:.1f} s, {values['lost']} steps redone")
        if number + 1 < reps:
            run.settle(3)


class Stock:
    """One run of ray.train's elastic trainer, in a thread of this process."""

    def __init__(self, workers: int):
        os.environ.update(SETTINGS)
        connect()
        NewNodes(NODES).leave_to_others()
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        self._coordinator: Any = get_or_create_autoscaling_coordinator()
        forget_the_dead(self._coordinator)
        self._workers = workers
        self._claimed, self._renewed_at = 0, 0.0
        self._requester = f"bench-{uuid.uuid4().hex[:6]}"
        folder = Path(os.environ["EAGLERAY_HOME"]) / f"stock-{uuid.uuid4().hex[:6]}"
        folder.mkdir()
        self._steps = folder / "steps.jsonl"
        self._steps.touch()
        self._ended: str | None = None
        spec = workloads.gpt(workers)
        trainer = TorchTrainer(
            train_function(),
            train_loop_config={"spec": spec.model_dump(mode="json"), "steps_file": str(self._steps)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=(1, workers),
                use_gpu=True,
                resources_per_worker={"CPU": 1, "GPU": 1},
                elastic_resize_monitor_interval_s=0,
            ),
            run_config=RunConfig(
                name=folder.name, storage_path=str(folder), failure_config=FailureConfig(max_failures=-1)
            ),
        )
        threading.Thread(target=self._fit, args=(trainer,), daemon=True).start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
            self._ended = "it is finished"
        except BaseException as error:
            self._ended = f"{type(error).__name__}: {error}"

    def steps(self) -> list[dict[str, Any]]:
        """Each step that rank 0 took: `time`, `step`, `world`, `pid`."""
        lines = self._steps.read_text().splitlines(True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def leave(self, size: int) -> float:
        """Claim what leaves the run so many workers, or nothing where that is all; when that was."""
        import ray

        self._claimed = int(ray.cluster_resources().get("GPU", 0)) - size if size < self._workers else 0
        at = time.time()
        if self._claimed:
            self._renew()
        else:
            ray.get(self._coordinator.cancel_request.remote(self._requester))
        return at

    def _renew(self) -> None:
        """State the claim: the coordinator forgets one that is older than CLAIM_S."""
        import ray

        class Priority(enum.Enum):  # here, so that it travels by value
            ABOVE_ALL = 100

        ray.get(
            self._coordinator.request_resources.remote(
                requester_id=self._requester,
                resources=[{"CPU": 1.0, "GPU": 1.0}] * self._claimed,
                expire_after_s=CLAIM_S,
                priority=Priority.ABOVE_ALL,
            )
        )
        self._renewed_at = time.monotonic()

    def kill(self) -> float:
        """SIGKILL for a worker that is not rank 0; when that was."""
        import psutil

        newest = self.steps()[-1]
        parent = psutil.Process(newest["pid"])
        peers = [int(pid) for pid in newest["peers"] if int(pid) != parent.pid]
        at = time.time()
        os.kill(peers[0], signal.SIGKILL)
        return at

    def passage(self, at: float, size: int | None) -> dict[str, Any]:
        """From the last step of the group that was there at a time to the first new one of the next."""

        def found() -> dict[str, Any] | None:
            steps = self.steps()
            pids = [one["pid"] for one in steps if one["time"] <= at]
            old = [one for one in steps if one["pid"] == pids[-1]]
            new = [one for one in steps if one["pid"] != pids[-1] and one["time"] > at]
            first = next((one for one in new if one["step"] > old[-1]["step"]), None)
            if first is None or (size is not None and first["world"] != size):
                return None
            return {
                "pause_s": first["time"] - old[-1]["time"],
                "lost": old[-1]["step"] - (new[0]["step"] - 1),
                "first_at": first["time"],
            }

        return self._until(found, f"step of another group{'' if size is None else f' of {size}'}")

    def settle(self, size: int) -> None:
        """Until one group of so many workers has taken some steps."""
        self._until(
            lambda: is_one_group(self.steps(), size, SETTLED_STEPS) or None,
            f"{SETTLED_STEPS} steps of {size} workers",
        )

    def _until(self, found: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while (value := found()) is None:
            if self._ended is not None or time.monotonic() > deadline:
                steps = self.steps()
                raise RowFailed(f"no {what}; last step {steps[-1:]}; {self._ended or 'the run goes on'}")
            if self._claimed and time.monotonic() - self._renewed_at > CLAIM_S / 4:
                self._renew()
            time.sleep(0.05)
        return value


def forget_the_dead(coordinator: Any) -> None:
    """Cancel what runs of other drivers asked the coordinator for: here they have all ended.

    A driver that is killed cannot, and for the 180 s until it expires stock would count those nodes as taken.
    """
    import ray

    def forget(actor: Any) -> None:  # here, so that it travels by value
        for requester in list(actor._ongoing_reqs):  # Ray 2.60 has no other list of them
            if requester.startswith(("train-", "bench-")):
                actor.cancel_request(requester)

    ray.get(coordinator.__ray_call__.remote(forget), timeout=LIMIT_S)


def train_function() -> Callable[[dict[str, Any]], None]:
    """What each of stock Ray's workers runs; a nested function, so that it travels by value."""

    def train(config: dict[str, Any]) -> None:
        import json
        import os
        import tempfile
        import time
        from pathlib import Path

        import numpy as np
        import ray.train
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        from eagleray import data, models
        from eagleray.specs import TrainSpec

        torch.set_num_threads(1)
        spec = TrainSpec.model_validate(config["spec"])
        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
        dataset = data.open_dataset(spec.data)
        torch.manual_seed(spec.seed)
        model = models.build(spec.model, dataset.signature)
        optimizer = torch.optim.AdamW(model.parameters(), lr=spec.optimizer.lr)
        step = 0
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder, "state.pt"))
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        peers = [None] * world
        if world > 1:
            dist.all_gather_object(peers, os.getpid())
            module = DistributedDataParallel(model)
        else:
            peers, module = [os.getpid()], model
        loss_of = models.per_sample_loss(spec.loss)
        count = max(1, spec.training.global_batch_size // world)
        file = os.open(config["steps_file"], os.O_WRONLY | os.O_APPEND)
        while True:
            rng = np.random.default_rng((spec.seed, step, rank))
            arrays = dataset.train.fetch(rng.integers(dataset.train.num_samples, size=count))
            loss = loss_of(module(torch.from_numpy(arrays.inputs)), torch.from_numpy(arrays.targets)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if rank == 0:
                line = {"time": time.time(), "step": step, "world": world, "pid": os.getpid(), "peers": peers}
                os.write(file, (json.dumps(line) + "\n").encode())
            if step % spec.checkpoint.every_steps == 0:
                with tempfile.TemporaryDirectory() as folder:
                    saved = None
                    if rank == 0:
                        state = {
                            "model": model.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "step": step,
                        }
                        torch.save(state, Path(folder, "state.pt"))
                        saved = ray.train.Checkpoint.from_directory(folder)
                    ray.train.report({"step": step}, checkpoint=saved)

    return train
