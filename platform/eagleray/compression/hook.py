"""DDP's communication hook: the only place that touches it. Hands each bucket to the engine."""

# No `from __future__ import annotations`: DDP compares the hook's annotations with the types themselves.

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from eagleray import groups
from eagleray.compression import alike, fitting, state
from eagleray.compression.automatic import Auto, Choice
from eagleray.compression.compressor import Compressor
from eagleray.compression.engine import Engine
from eagleray.compression.guard import Alone
from eagleray.compression.jobs import Job
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.optimizer import MomentumAdam, Paired, pair, thaw
from eagleray.compression.own import try_out
from eagleray.compression.stats import NonFinite, Stats
from eagleray.compression.topk import TopK
from eagleray.compression.wire import Step, Wire
from eagleray.errors import InputError
from eagleray.groups import Group
from eagleray.specs.compression import CompressionSpec


class Hook:
    """What `attach` returns: the stats and the state of one model's gradient exchange."""

    def __init__(
        self,
        model: DistributedDataParallel,
        compressor: Compressor,
        group: Group,
        layout: Layout,
        *,
        is_rehearsed: bool,
        owns_group: bool,
        keeps_each_rank: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        self._group, self._owns_group, self._keeps_each_rank = group, owns_group, keeps_each_rank
        self._model = model
        self._optimizer = optimizer if isinstance(optimizer, MomentumAdam) else None
        self._names = {parameter: name for name, parameter in model.module.named_parameters()}
        self._buckets: dict[tuple[int, ...], Bucket] = {}
        parameter = fitting.first_parameter(model)
        self.memory = Memory(layout, torch.device("cpu") if parameter is None else parameter.device)
        self._engine = Engine(compressor, group, layout, self.memory)
        self._exchanges, self._alone = group.world_size > 1 or is_rehearsed, Alone()
        self._step = 1
        self._loss_scale = 1.0

    @property
    def compressor(self) -> Compressor:
        """What the engine exchanges with at the moment."""
        return self._engine.compressor

    def choice(self) -> Choice | None:
        """What `auto` exchanges with, why, and the numbers; None with any other compressor."""
        return self.compressor.choice() if isinstance(self.compressor, Auto) else None

    def stats(self) -> Stats:
        """Sums over all buckets and steps of this rank."""
        return self._engine.meter.stats

    def bucket_stats(self) -> dict[tuple[str, ...], Stats]:
        """The same by bucket, of those that DDP has at the moment; a key is the parameters' names."""
        return dict(self._engine.meter.buckets)

    def non_finite(self) -> NonFinite:
        """How many steps had a gradient that was not finite on some rank; the same on all ranks."""
        return self._engine.guard.non_finite if self._exchanges else self._alone.non_finite()

    def set_loss_scale(self, scale: float) -> None:
        """Say by how much the next gradients are multiplied, as by a gradient scaler: residuals are not."""
        self._loss_scale = scale

    def collect_state(self) -> dict[str, Any] | None:
        """What a later run needs to go on, on rank 0 and on the CPU; None on the others.

        All ranks must call it, between two backward passes: they send each other what they still owe, each
        4 bytes a parameter (`Stats.state_bytes`). Where a rank does not come, the log names it.

        Raises:
            PeerLost: another rank stopped answering.
            InputError: the hook is closed.
        """
        number, compressor = self._step, self.compressor

        def collect(wire: Wire) -> dict[str, Any] | None:
            per_rank, before = self._keeps_each_rank, self._engine.meter.read()
            with wire.aside():
                found = state.finish(
                    state.collect(self.memory, wire, number, compressor.name, per_rank=per_rank)
                )
            self._engine.meter.add_state(before)
            return found

        collected = self._engine.call("collect_state", collect)
        if collected is not None and isinstance(compressor, Auto):
            collected["automatic"] = compressor.state_dict()
        return collected

    @property
    def is_exchanging(self) -> bool:
        """Whether the engine waits for another rank at the moment; from any thread."""
        return self._engine.is_waiting

    def even_out(self) -> None:
        """Give every rank the mean of what all still owe: before a planned change of their number.

        All ranks must call it, between two backward passes. Raises: PeerLost
        """
        number = self._step
        self._engine.call("even_out", lambda wire: state.finish(state.even_out(self.memory, wire, number)))

    def own_state(self) -> dict[str, Any]:
        """What this rank keeps, as a state that others can load; of all ranks, after `even_out`."""
        compressor = self.compressor
        found = state.of_one(self.memory, compressor.name, self._group.world_size)
        if isinstance(compressor, Auto):
            found["automatic"] = compressor.state_dict()
        return found

    def follow(self, earlier: "Hook", *, num_lost: int, is_even: bool) -> state.Lost:
        """Take over, before the first step, what an earlier hook of the same model on this rank has kept.

        Args:
            earlier: is closed, and of no use afterwards.
            num_lost: how many ranks were lost since: what they owed goes with them.
            is_even: every rank keeps the mean of what all owe (`even_out`), so its weight is right with any
                number of them.

        Returns what of it was lost with the ranks that were.
        """
        lost = state.Lost(0, 0.0, 0.0)
        earlier.memory.take_back()  # of a step that a loss cut off, as far as it was copied
        self.memory.flats, self.memory.tensors = earlier.memory.flats, earlier.memory.tensors
        self.memory.owe(self.compressor.sends_residual)
        if not is_even:
            before = earlier._group.world_size  # and not of a formation that broke before it came about
            left = max(1, before - num_lost)
            lost = state.reweigh(self.memory, before, left)
            state.reweigh(self.memory, left, self._group.world_size)
        compressor, other = self.compressor, earlier.compressor
        if isinstance(compressor, Auto) and isinstance(other, Auto):
            compressor.load_state_dict(other.state_dict())
        return lost

    def common_state(self) -> dict[str, Any]:
        """What all ranks must have alike, as this one has it: for the others, after a step that broke."""
        return alike.given(self.memory)

    def take_common_state(self, theirs: Mapping[str, Any]) -> None:
        """Have it as another rank has it (its `common_state`); before the first step, after `follow`."""
        alike.take(self.memory, theirs)
        self.memory.owe(self.compressor.sends_residual)

    def load_state_dict(self, state_dict: Mapping[str, Any] | None) -> list[str]:
        """Take a state before the first step, of any number of ranks and any compressor; all must load it.

        Returns what did not go over, in sentences.

        Raises: InputError: it is of another model, or was written by a later version; or it is None, which
            `collect_state` gives on all ranks but the first.
        """
        if state_dict is None:
            raise InputError(
                "every rank needs the state that rank 0 has collected: load the file on every rank, or "
                "broadcast it (torch.distributed.broadcast_object_list)"
            )
        compressor = self.compressor
        notes = state.load(
            state_dict,
            self.memory,
            compressor.name,
            rank=self._group.rank,
            world_size=self._group.world_size,
            sends_residual=compressor.sends_residual,
        )
        if state_dict.get("automatic") is not None and isinstance(compressor, Auto):
            compressor.load_state_dict(state_dict["automatic"])
        return notes

    def close(self) -> None:
        """End the engine's thread, and the group if `attach` made it. Twice is fine."""
        self._engine.close()
        self._alone.non_finite()  # it lets go of DDP's buffers
        if self._owns_group:
            groups.close(self._group)

    def _exchange(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The future mean of the bucket's gradient, in the bucket's own buffer."""
        gradient = bucket.buffer()
        is_cuda = gradient.is_cuda
        future: Future[Tensor] = Future(devices=[gradient.device]) if is_cuda else Future()
        step = Step(self._step, bucket.index(), self._loss_scale)
        if self._optimizer is not None and step.bucket == 0:
            self._optimizer.forget()  # a step that broke, or was skipped, has left in it what it expected
        if bucket.is_last():
            self._step += 1
        if not self._exchanges:
            self._alone.see(self._bucket(bucket), gradient, is_first=step.bucket == 0)
            future.set_result(gradient)
            return future
        ready = torch.cuda.current_stream(gradient.device).record_event() if is_cuda else None
        job = Job(self._bucket(bucket), gradient, step, future, ready, bucket.is_last())
        if self._model._join_config.enable and self._sends_momentum():
            job.failure = InputError(
                f"compression {self.compressor.name} does not work within join(): a rank that has ended "
                "takes no optimizer steps, so that its momentum is not the others'; choose another one"
            )
            future.set_result(gradient)
        else:
            self._engine.submit(job)
        return self._watch(job) if bucket.is_last() else future

    def _sends_momentum(self) -> bool:
        """Whether, in this step or a later one, the optimizer's momentum travels."""
        compressor = self.compressor
        return compressor.may_pair() if isinstance(compressor, Auto) else isinstance(compressor, Paired)

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

    def _bucket(self, bucket: dist.GradBucket) -> Bucket:
        """Which parameters lie where in the buffer: one behind the other, in DDP's order."""
        parameters = bucket.parameters()
        ids = tuple(map(id, parameters))
        found = self._buckets.get(ids)
        if found is None:
            places = self._engine.layout.places
            found = Bucket.packed(places[self._names[parameter]] for parameter in parameters)
            self._buckets[ids] = found
            assert found.numel == bucket.buffer().numel(), "DDP pads its buckets"
        return found


def attach(
    model: DistributedDataParallel,
    compression: CompressionSpec | Mapping[str, Any] | Compressor | str = "auto",
    group: Group | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    rehearse: bool | None = None,
) -> Hook:
    """Send the model's gradients compressed; afterwards backward gives their mean over the ranks.

    All ranks must call it. The model's communication hook is taken: DDP has one.

    Args:
        model: its parameters that require a gradient are exchanged.
        compression: a spec or its fields, a compressor, or the name of a kind.
        group: has the model's ranks and is used by nothing else while the model trains; it is the caller's to
            close. None: a new one, over gloo or NCCL as the model's device wants.
        optimizer: what takes the steps: `auto` leaves out what does not suit it; onebit_adam and fourbit_adam
            need a MomentumAdam. None: not known.
        rehearse: a rank that is alone, and sends nothing, gets the gradient that compression would have left
            of it. None: as the spec says. topk with a momentum, which the optimizer then lacks, always does.

    Raises:
        SpecError: there is no such kind, or a setting of it is not right.
        InputError: this is no DDP model, or no compression; the model has mixed_precision, a hook already,
            complex parameters or an embedding with sparse gradients, float64 ones that the compression would
            round, or shares `group` for its own messages; `group` has other ranks, or is gloo's and the model
            on GPUs; `keep_dense` names no parameter; compression and optimizer do not fit; a compressor of
            one's own does not do what it must (`own.try_out`); or another rank has another model, other
            compression or other settings of it.
        PeerLost: another rank did not come.
    """
    fitting.require_ddp(model)
    _require_free(model)
    settings, compressor = fitting.settings_of(compression, model)
    if optimizer is not None:
        thaw(optimizer)
    meet = compressor.pair if isinstance(compressor, Auto) else partial(pair, compressor)
    meet(optimizer, dict(model.module.named_parameters()))
    owns_group = group is None
    if group is None:
        group = fitting.new_group(model)
    else:
        fitting.require_group(group, model)
    try:
        layout = fitting.layout_of(model, settings, group.world_size)
        if (first := fitting.first_parameter(model)) is not None:
            try_out(compressor, layout, first.device, first.dtype)
        if group.world_size > 1:
            groups.quicken(group)
            said = settings.model_dump_json()
            Wire(group).agree(f"compression {compressor.name}", layout.digest, layout.numel, said)
        hook = Hook(
            model,
            compressor,
            group,
            layout,
            is_rehearsed=_is_rehearsed(compressor, settings.rehearse if rehearse is None else rehearse),
            owns_group=owns_group,
            keeps_each_rank=settings.residuals == "per_rank",
            optimizer=optimizer,
        )
    except BaseException:
        if owns_group:
            groups.close(group)
        raise
    try:
        model.register_comm_hook(hook, Hook._exchange)
    except RuntimeError as error:
        hook.close()
        raise InputError(
            f"this model has a communication hook already, and DDP takes one only: {error}"
        ) from error
    return hook


def _is_rehearsed(compressor: Compressor, is_asked_for: bool) -> bool:
    """Whether a rank alone encodes and decodes: where asked for, or where the momentum is in it."""
    has_momentum = isinstance(compressor, TopK) and compressor.momentum > 0
    return has_momentum or (is_asked_for and compressor.is_lossy)


def _require_free(model: DistributedDataParallel) -> None:
    """Raises: InputError: the model has its one communication hook already."""
    for _, earlier in model._comm_hooks:
        said = (
            f"compression.attach was called for it before ({earlier.compressor.name}), and DDP takes one "
            "hook only, even if that is closed; use what the first call returned, or wrap the module anew: "
            "DistributedDataParallel(model.module)"
            if isinstance(earlier, Hook)
            else "DDP takes one only; leave register_comm_hook out"
        )
        raise InputError(f"this model has a communication hook already: {said}")
