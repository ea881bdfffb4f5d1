"""DDP's communication hook: the only place that touches it. Hands each bucket to the engine."""

# No `from __future__ import annotations`: DDP compares the hook's annotations with the types themselves.

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from eagleray import groups
from eagleray.compression import state
from eagleray.compression.automatic import Auto, Choice
from eagleray.compression.compressor import Compressor, make_compressor
from eagleray.compression.engine import Engine, Job
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.optimizer import Paired, pair, thaw
from eagleray.compression.stats import NonFinite, Stats
from eagleray.compression.wire import Step, Wire
from eagleray.errors import InputError
from eagleray.groups import Group
from eagleray.specs import validate
from eagleray.specs.train import CompressionSpec

_TIMEOUT_S = 600.0


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
    ):
        self._group, self._owns_group, self._keeps_each_rank = group, owns_group, keeps_each_rank
        self._model = model
        self._names = {parameter: name for name, parameter in model.module.named_parameters()}
        self._buckets: dict[tuple[int, ...], Bucket] = {}
        parameter = next((p for p in model.module.parameters() if p.requires_grad), None)
        self.memory = Memory(layout, torch.device("cpu") if parameter is None else parameter.device)
        self._engine = Engine(compressor, group, layout, self.memory)
        self._is_rehearsed = is_rehearsed
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
        return self._engine.stats

    def bucket_stats(self) -> dict[tuple[str, ...], Stats]:
        """The same by bucket, of those that DDP has at the moment; a key is the parameters' names."""
        return dict(self._engine.buckets)

    def non_finite(self) -> NonFinite:
        """How many steps had a gradient that was not finite on some rank; the same on all ranks."""
        return self._engine.non_finite

    def set_loss_scale(self, scale: float) -> None:
        """Say by how much the next gradients are multiplied, as by a gradient scaler: residuals are not."""
        self._loss_scale = scale

    def collect_state(self) -> dict[str, Any] | None:
        """What a later run needs to go on, on rank 0 and on the CPU; None on the others.

        All ranks must call it, between two backward passes: they send each other what they still owe, each
        4 bytes a parameter (`Stats.state_bytes`).

        Raises: PeerLost: another rank stopped answering.
        """
        number, compressor = self._step, self.compressor

        def collect(wire: Wire) -> dict[str, Any] | None:
            per_rank, before = self._keeps_each_rank, wire.probe_bytes
            with wire.aside():
                found = state.finish(
                    state.collect(self.memory, wire, number, compressor.name, per_rank=per_rank)
                )
            self._engine.stats = self._engine.stats.plus(Stats(state_bytes=wire.probe_bytes - before))
            return found

        collected = self._engine.call(collect)
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
        self._engine.call(lambda wire: state.finish(state.even_out(self.memory, wire, number)))

    def own_state(self) -> dict[str, Any]:
        """What this rank keeps, as a state that others can load; of all ranks, after `even_out`."""
        compressor = self.compressor
        found = state.of_one(self.memory, compressor.name, self._group.world_size)
        if isinstance(compressor, Auto):
            found["automatic"] = compressor.state_dict()
        return found

    def follow(self, earlier: "Hook", *, num_lost: int, is_even: bool) -> None:
        """Take over, before the first step, what an earlier hook of the same model on this rank has kept.

        Args:
            earlier: is closed, and of no use afterwards.
            num_lost: how many ranks were lost since: what they owed goes with them.
            is_even: every rank keeps the mean of what all owe (`even_out`), so its weight is right with any
                number of them.
        """
        earlier.memory.take_back()  # of a step that a loss cut off, as far as it was copied
        self.memory.flats, self.memory.tensors = earlier.memory.flats, earlier.memory.tensors
        self.memory.owe(self.compressor.sends_residual)
        if not is_even:
            before = earlier._group.world_size  # and not of a formation that broke before it came about
            left = max(1, before - num_lost)
            state.reweigh(self.memory, before, left)
            state.reweigh(self.memory, left, self._group.world_size)
        compressor, other = self.compressor, earlier.compressor
        if isinstance(compressor, Auto) and isinstance(other, Auto):
            compressor.load_state_dict(other.state_dict())

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
        if self._owns_group:
            groups.close(self._group)

    def _exchange(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The future mean of the bucket's gradient, in the bucket's own buffer."""
        gradient = bucket.buffer()
        is_cuda = gradient.is_cuda
        future: Future[Tensor] = Future(devices=[gradient.device]) if is_cuda else Future()
        step = Step(self._step, bucket.index(), self._loss_scale)
        if bucket.is_last():
            self._step += 1
        if self._group.world_size == 1 and not self._is_rehearsed:
            future.set_result(gradient)
            return future
        ready = torch.cuda.current_stream(gradient.device).record_event() if is_cuda else None
        job = Job(self._bucket(bucket), gradient, step, future, ready, bucket.is_last())
        if self._model._join_config.enable and isinstance(self.compressor, Paired):
            job.failure = InputError(
                f"compression {self.compressor.name} does not work within join(): a rank that has ended "
                "takes no optimizer steps, so that its momentum is not the others'; choose another one"
            )
            future.set_result(gradient)
        else:
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
            of it. None: as the spec says.

    Raises:
        SpecError: there is no such kind, or a setting of it is not right.
        InputError: this is no DDP model, or no compression; the model has mixed_precision, a hook already,
            complex parameters or an embedding with sparse gradients, or shares `group` for its own messages;
            `group` has other ranks, or is gloo's and the model on GPUs; `keep_dense` names no parameter;
            compression and optimizer do not fit; or another rank has another model, other compression or
            other settings of it.
        PeerLost: another rank did not come.
    """
    if not isinstance(model, DistributedDataParallel):
        raise InputError(
            f"compression.attach takes a DistributedDataParallel model, not {type(model).__name__}; wrap it "
            "first"
        )
    settings, compressor = _settings(compression)
    if optimizer is not None:
        thaw(optimizer)
    meet = compressor.pair if isinstance(compressor, Auto) else partial(pair, compressor)
    meet(optimizer, dict(model.module.named_parameters()))
    if model.mixed_precision is not None:
        raise InputError(
            "DDP(mixed_precision=...) has a communication hook of its own, so no compressor can be attached; "
            "leave it out and use torch.autocast"
        )
    owns_group = group is None
    group = _group(model) if group is None else _checked(group, model)
    try:
        layout = _layout(model, settings, group.world_size)
        if group.world_size > 1:
            groups.quicken(group)
            said = settings.model_dump_json()
            Wire(group).agree(f"compression {compressor.name}", layout.digest, layout.numel, said)
        hook = Hook(
            model,
            compressor,
            group,
            layout,
            is_rehearsed=(settings.rehearse if rehearse is None else rehearse) and compressor.is_lossy,
            owns_group=owns_group,
            keeps_each_rank=settings.residuals == "per_rank",
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


def _require_reach(device: torch.device, group: Group) -> None:
    """Raises: InputError: the group's backend does not send what lies on the device."""
    if device.type == "cuda" and group.backend == "gloo" and group.world_size > 1:
        raise InputError(
            f"the model is on {device}, and gloo, the backend of group {group.name!r}, sends from the CPU "
            "only; give attach a group over nccl (which wants a GPU for each rank), or none, and it makes one"
        )


def _settings(compression: Any) -> tuple[CompressionSpec, Compressor]:
    """The spec, or the defaults beside a compressor, and what exchanges. Raises: InputError: see `attach`."""
    if isinstance(compression, str):
        compression = {"kind": compression}
    if isinstance(compression, Mapping):
        compression = validate(CompressionSpec, compression, name="compression")
    if isinstance(compression, CompressionSpec):
        return compression, make_compressor(compression)
    wanted = ("name", "keeps_dtype", "is_lossy", "bind", "plan")
    if isinstance(compression, type) or not all(hasattr(compression, name) for name in wanted):
        raise InputError(
            f"compression is {compression!r}; give the name of a kind (docs/compression.md), a "
            "CompressionSpec or its fields, or a compressor"
        )
    return CompressionSpec(), compression


def _group(model: DistributedDataParallel) -> Group:
    """A new one of the model's ranks."""
    backend = "nccl" if next(model.module.parameters()).is_cuda else "gloo"
    ranks = dist.get_process_group_ranks(model.process_group)
    is_part = len(ranks) < dist.get_world_size()
    return groups.new_group(
        "gradients", backend=backend, timeout_s=_TIMEOUT_S, ranks=ranks if is_part else None
    )


def _checked(group: Group, model: DistributedDataParallel) -> Group:
    """The caller's group. Raises: InputError: it is not the model's, does not reach it, or is shared."""
    _require_reach(next(model.module.parameters()).device, group)
    num_ranks = dist.get_world_size(model.process_group)
    if group.world_size != num_ranks:
        raise InputError(
            f"the group {group.name!r} has {group.world_size} ranks, but DDP's process_group has "
            f"{num_ranks}; give compression.attach a group of the model's ranks, or none"
        )
    if model.find_unused_parameters and model.process_group is group.process_group and num_ranks > 1:
        raise InputError(
            "DDP(find_unused_parameters=True) sends messages of its own in the middle of backward; "
            f"give DDP another process_group than the engine's ({group.name!r})"
        )
    return group


def _layout(model: DistributedDataParallel, spec: CompressionSpec, world_size: int) -> Layout:
    named = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
    for name, parameter in named:
        if parameter.is_complex():
            raise InputError(
                f"{name} is {parameter.dtype}, and compression takes real numbers only; keep it as a real "
                "parameter of one dimension more (torch.view_as_real)"
            )
    for name, module in model.module.named_modules():
        is_sparse = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        if is_sparse and module.weight.requires_grad:
            raise InputError(
                f"the embedding {name or '(the model)'!r} has sparse gradients, which no compressor takes; "
                "make it with sparse=False"
            )
    unknown = set(spec.keep_dense).difference(name for name, _ in named)
    if unknown:
        raise InputError(
            f"compression.keep_dense: the model trains no {', '.join(sorted(unknown))}; it has "
            f"{', '.join(name for name, _ in named[:20])}{', ...' if len(named) > 20 else ''}"
        )
    return Layout(
        ((name, parameter.shape) for name, parameter in named),
        world_size=world_size,
        dense_below=spec.dense_below,
        keep_dense=spec.keep_dense,
    )
