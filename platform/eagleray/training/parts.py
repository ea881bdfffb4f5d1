"""Everything one rank trains with, built from the spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, data, device, groups, models
from eagleray.errors import SpecError
from eagleray.packaging import load_weights
from eagleray.specs import Signature, TrainSpec
from eagleray.specs.compression import CompressionSpec
from eagleray.training.agreement import Agreement
from eagleray.training.optimizers import build_optimizer


@dataclass(frozen=True)
class Parts:
    """One rank's share of a run. The module, optimizer and scaler are changed by training."""

    spec: TrainSpec
    rank: int
    world_size: int
    place: device.Place
    dataset: data.Dataset
    loader: data.Loader
    module: nn.Module
    model: DistributedDataParallel
    hook: compression.Hook
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    agreement: Agreement
    per_sample_loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        training = self.spec.training
        if training.steps is not None:
            return training.steps
        assert training.epochs is not None
        return training.epochs * self.loader.steps_per_epoch

    def close(self) -> None:
        """Stop the compression engine, and DDP's hooks on the parameters; the groups are the caller's.

        DDP's reducer takes its hooks off the parameters as it goes. What holds the model still, such as the
        traceback of a loss, would keep it, and the next DDP of the module would find its gradients taken.
        """
        self.hook.close()
        del self.model.reducer
        self.model.logger = None


@dataclass(frozen=True)
class Materials:
    """What does not depend on who the other ranks are, and goes on when they change."""

    spec: TrainSpec
    place: device.Place
    dataset: data.Dataset
    loader: data.Loader
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def gather(spec: TrainSpec, place: device.Place) -> Materials:
    """The data, the model with its first weights, and the optimizer.

    Raises:
        DataError, SpecError: the dataset or the model cannot be built from the spec, or the spec's prompt is
            none that the model could complete.
        CheckpointError: `training.init_from` does not verify.
    """
    dataset = data.open_dataset(spec.data)
    if spec.completion is not None:
        require_text(dataset.signature)
    loader = data.Loader(
        dataset.train,
        global_batch_size=spec.training.global_batch_size,
        seed=spec.seed,
        transform=_transform(spec, dataset),
    )
    torch.manual_seed(spec.seed)  # the same weights on every rank, whatever the world size
    module = models.build(spec.model, dataset.signature)
    module = module.to(place.device, device.dtype(spec.training.precision))
    if spec.training.init_from is not None:
        load_initial(module, spec.training.init_from)
    if place.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return Materials(
        spec=spec,
        place=place,
        dataset=dataset,
        loader=loader,
        module=module,
        optimizer=build_optimizer(spec.optimizer, module.parameters(), compression=_compression(spec)),
        scaler=torch.amp.GradScaler(place.device.type, enabled=spec.training.precision == "fp16"),
    )


def connect(
    materials: Materials, *, gradients: groups.Group, agreement: Agreement, sends_weights: bool
) -> Parts:
    """The parts of this rank among others.

    Args:
        materials: of this rank.
        gradients: a process group for the engine alone.
        agreement: over the same ranks.
        sends_weights: the first rank's weights are sent to all; else all hold the same ones, or will be given
            them.
    """
    spec, module = materials.spec, materials.module
    # DDP itself talks on the default group (start, unused parameters); the hook's is the engine's alone.
    model = DistributedDataParallel(
        module,
        forward_sync_buffers=False,  # averaged at each commit instead: no message per forward
        gradient_as_bucket_view=True,
        init_sync=sends_weights,
        find_unused_parameters=spec.model.kind == "module",  # what a user's module uses is not known
    )
    return Parts(
        spec=spec,
        rank=gradients.rank,
        world_size=gradients.world_size,
        place=materials.place,
        dataset=materials.dataset,
        loader=materials.loader,
        module=module,
        model=model,
        hook=compression.attach(model, _compression(spec), gradients, optimizer=materials.optimizer),
        optimizer=materials.optimizer,
        scaler=materials.scaler,
        agreement=agreement,
        per_sample_loss=models.per_sample_loss(spec.loss),
    )


def require_text(signature: Signature) -> None:
    """Check that a model of such data can complete a prompt. Raises: SpecError, before it is trained."""
    if signature.tokenizer is None:
        raise SpecError(
            "completion completes text, and the signature of the data names no tokenizer; give "
            'tokenizer = "bytes" in it, or take [completion] out of the spec'
        )
    found, needed = signature.vocabulary_size or 0, data.ByteTokenizer.padding_token
    if found < needed:
        raise SpecError(
            f"completion: tokenizer 'bytes' has {needed} tokens, and the data's vocabulary_size is {found}; "
            "raise it, or take [completion] out of the spec"
        )


def _compression(spec: TrainSpec) -> CompressionSpec:
    """As the spec says; but who asks for float64 wants no gradient in eight bits."""
    if spec.compression.kind == "auto" and spec.training.precision == "float64":
        return spec.compression.model_copy(update={"fidelity": "exact"})
    return spec.compression


def _transform(spec: TrainSpec, dataset: data.Dataset) -> data.Transform | None:
    if spec.loss.kind == "masked_token":
        return data.Masking.of(spec.loss.mask_fraction, dataset.signature)
    if spec.data.augment is not None:
        return data.Augment(spec.data.augment)
    return None


def has_local_buffers(parts: Parts) -> bool:
    """Whether the ranks have buffers, which training may change on each by itself (BatchNorm, code books)."""
    return parts.world_size > 1 and any(True for _ in parts.module.buffers())


def has_local_batch_norm(parts: Parts) -> bool:
    """Whether the module keeps batch statistics of each rank's own: BatchNorm on the CPU, over many ranks."""
    is_local = any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, nn.SyncBatchNorm)
        for layer in parts.module.modules()
    )
    return is_local and parts.world_size > 1


def load_initial(module: nn.Module, url: str) -> None:
    """Load the weights of a checkpoint or package into `module`. Raises: SpecError where they do not fit."""
    try:
        module.load_state_dict(load_weights(url))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise SpecError(
            f"training.init_from {url}: its weights are of another model: {first} "
            "Give the model that they were trained with, or other weights"
        ) from error
