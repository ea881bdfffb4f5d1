"""What must fit together before the first step: a model, a compression and a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import groups
from eagleray.compression.compressor import Compressor, lacking, make_compressor
from eagleray.compression.layout import Layout
from eagleray.errors import InputError
from eagleray.groups import Group
from eagleray.specs import validate
from eagleray.specs.compression import CompressionSpec

_TIMEOUT_S = 600.0


def settings_of(compression: Any, model: DistributedDataParallel) -> tuple[CompressionSpec, Compressor]:
    """The spec, or the defaults beside a compressor, and what exchanges. Raises: InputError: see `attach`."""
    wide = next((n for n, p in model.module.named_parameters() if p.requires_grad and _is_wide(p)), None)
    settings, compressor = _settings_of(compression, is_exact=wide is not None)
    if wide is not None and not compressor.keeps_dtype:
        raise InputError(
            f"{wide} is torch.float64, and compression {compressor.name} would round its gradient to float32 "
            "and less; take none or auto, which is exact then, or make the parameter float32"
        )
    return settings, compressor


def _is_wide(parameter: torch.Tensor) -> bool:
    return parameter.dtype == torch.float64


def _settings_of(compression: Any, *, is_exact: bool) -> tuple[CompressionSpec, Compressor]:
    if isinstance(compression, str):
        compression = {"kind": compression}
    if isinstance(compression, Mapping):
        compression = validate(CompressionSpec, compression, name="compression")
    if isinstance(compression, CompressionSpec):
        if is_exact and compression.kind == "auto":
            compression = compression.model_copy(update={"fidelity": "exact"})
        return compression, make_compressor(compression)
    missing = lacking(compression)
    if isinstance(compression, type) or {"bind", "plan"} <= set(missing):
        raise InputError(
            f"compression is {compression!r}; give the name of a kind (docs/compression.md), a "
            "CompressionSpec or its fields, or a compressor"
        )
    if missing:
        raise InputError(
            f"the compressor {compression!r} has no {', '.join(missing)}; eagleray.compression.Compressor "
            "says what a compressor has"
        )
    return CompressionSpec(), compression


def first_parameter(model: DistributedDataParallel) -> torch.Tensor | None:
    """The first that is trained; it stands for all where their device and type matter."""
    return next((p for p in model.module.parameters() if p.requires_grad), None)


def new_group(model: DistributedDataParallel) -> Group:
    """A new one of the model's ranks."""
    backend = "nccl" if next(model.module.parameters()).is_cuda else "gloo"
    ranks = dist.get_process_group_ranks(model.process_group)
    is_part = len(ranks) < dist.get_world_size()
    return groups.new_group(
        "gradients", backend=backend, timeout_s=_TIMEOUT_S, ranks=ranks if is_part else None
    )


def require_group(group: Group, model: DistributedDataParallel) -> None:
    """Check the caller's. Raises: InputError: it is not the model's, does not reach it, or is shared."""
    require_reach(next(model.module.parameters()).device, group)
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


def require_reach(device: torch.device, group: Group) -> None:
    """Raises: InputError: the group's backend does not send what lies on the device."""
    if device.type == "cuda" and group.backend == "gloo" and group.world_size > 1:
        raise InputError(
            f"the model is on {device}, and gloo, the backend of group {group.name!r}, sends from the CPU "
            "only; give attach a group over nccl (which wants a GPU for each rank), or none, and it makes one"
        )


def require_ddp(model: Any) -> None:
    """Raises: InputError: it is no DDP model, or one whose gradients no hook of ours can take."""
    if not isinstance(model, DistributedDataParallel):
        raise InputError(
            f"compression.attach takes a DistributedDataParallel model, not {type(model).__name__}; wrap it "
            "first"
        )
    if model.mixed_precision is not None:
        raise InputError(
            "DDP(mixed_precision=...) has a communication hook of its own, so no compressor can be attached; "
            "leave it out and use torch.autocast"
        )


def layout_of(model: DistributedDataParallel, spec: CompressionSpec, world_size: int) -> Layout:
    """Where the model's parameters lie. Raises: InputError: it has some that no compressor takes."""
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
