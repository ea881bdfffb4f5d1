"""DDP's communication hook: the only place that touches it. Hands each bucket to the engine."""

# No `from __future__ import annotations`: DDP compares the hook's annotations with the types themselves.

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from eagleray.compression.compressor import Compressor
from eagleray.compression.engine import Engine, Job
from eagleray.compression.stats import Stats
from eagleray.errors import InputError
from eagleray.groups import Group


class Hook:
    """What `attach` returns: the stats and the state of one model's gradient exchange."""

    def __init__(self, model: DistributedDataParallel, compressor: Compressor, group: Group, rehearse: bool):
        self._names = {parameter: name for name, parameter in model.module.named_parameters()}
        self._keys: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._compressor = compressor
        self._engine = Engine(compressor, group) if group.world_size > 1 else None
        self._is_rehearsed = rehearse and compressor.is_encoded
        self._step = 1

    def stats(self) -> Stats:
        """Sums over all buckets and steps of this rank."""
        return Stats() if self._engine is None else self._engine.stats

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to go on: the casts of today keep nothing but their name."""
        return {"version": 1, "compressor": self._compressor.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state; another compressor's is fine.

        Raises: InputError: it was written by a later version.
        """
        if state.get("version") != 1:
            raise InputError(
                f"the compression state has version {state.get('version')!r}, this code reads version 1; "
                "use the newer eagleray, or start from the weights with training.init_from"
            )

    def close(self) -> None:
        """End the engine's thread; the group is the caller's. Twice is fine."""
        if self._engine is not None:
            self._engine.close()

    def _exchange(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The future mean of the bucket's gradient, in the bucket's own buffer."""
        gradient = bucket.buffer()
        is_cuda = gradient.is_cuda
        future: Future[Tensor] = Future(devices=[gradient.device]) if is_cuda else Future()
        step = self._step
        if bucket.is_last():
            self._step += 1
        if self._engine is None:
            if self._is_rehearsed:
                payload = torch.empty_like(gradient, dtype=self._compressor.dtype)
                self._compressor.encode(gradient, payload)
                self._compressor.decode(payload, gradient)
            future.set_result(gradient)
            return future
        ready = torch.cuda.current_stream(gradient.device).record_event() if is_cuda else None
        job = Job(self._key(bucket), gradient, step, bucket.index(), future, ready)
        self._engine.submit(job)
        return self._watch(job) if bucket.is_last() else future

    def _watch(self, job: Job) -> Future[Tensor]:
        """Let backward raise the failure of this step's buckets, of which `job` is the last to be exchanged.

        A failed future would reach the caller as a RuntimeError, whatever was raised; a callback at the end
        of backward keeps the type. It runs before DDP's own, which is queued after this hook returns.
        """

        def check() -> None:
            job.future.wait()
            if job.failure is not None:
                raise job.failure

        def checked(done: Future[Tensor]) -> Tensor:
            check()
            return done.value()

        try:
            Variable._execution_engine.queue_callback(check)
        except RuntimeError:  # not in backward: DDP.join() stands in for a rank that has no more input
            return job.future.then(checked)
        return job.future

    def _key(self, bucket: dist.GradBucket) -> tuple[str, ...]:
        parameters = bucket.parameters()
        ids = tuple(map(id, parameters))
        key = self._keys.get(ids)
        if key is None:
            key = self._keys[ids] = tuple(self._names[parameter] for parameter in parameters)
        return key


def attach(
    model: DistributedDataParallel, compressor: Compressor, group: Group, *, rehearse: bool = False
) -> Hook:
    """Send the model's gradients through `compressor` over `group`; afterwards backward gives their mean.

    The model's communication hook is taken: DDP has one. `group` must have the model's ranks and be used by
    nothing else while the model trains. With `rehearse` a rank that is alone, and sends nothing, gets the
    gradient that the format would have left of it.

    Raises:
        InputError: the model has mixed_precision, or a hook already, or shares `group` for its own messages.
    """
    if model.mixed_precision is not None:
        raise InputError(
            "DDP(mixed_precision=...) has a communication hook of its own, so no compressor can be attached; "
            "leave it out and use torch.autocast"
        )
    if model.find_unused_parameters and model.process_group is group.process_group and group.world_size > 1:
        raise InputError(
            "DDP(find_unused_parameters=True) sends messages of its own in the middle of backward; "
            f"give DDP another process_group than the engine's ({group.name!r})"
        )
    hook = Hook(model, compressor, group, rehearse)
    try:
        model.register_comm_hook(hook, Hook._exchange)
    except RuntimeError as error:
        hook.close()
        raise InputError(
            f"this model has a communication hook already, and DDP takes one only: {error}"
        ) from error
    return hook
