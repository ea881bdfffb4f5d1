"""`TrainSpec`: one training run, whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from eagleray.specs.base import ExistingPath, FileSpec, Name, Spec, located
from eagleray.specs.compression import ADAM_PAIRS, CompressionSpec, sparse_under
from eagleray.specs.data import DataSpec, TableData
from eagleray.specs.model import ModelSpec


class CrossEntropyLoss(Spec):
    """For class targets."""

    kind: Literal["cross_entropy"]
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class MseLoss(Spec):
    """For value targets."""

    kind: Literal["mse"]


class NextTokenLoss(Spec):
    """Cross-entropy of each token given those before it."""

    kind: Literal["next_token"]


class MaskedTokenLoss(Spec):
    """Cross-entropy of masked tokens given the others."""

    kind: Literal["masked_token"]
    mask_fraction: float = Field(default=0.15, gt=0, lt=1)


LossSpec = Annotated[
    CrossEntropyLoss | MseLoss | NextTokenLoss | MaskedTokenLoss, Field(discriminator="kind")
]


_LOSSES = {"class": ("cross_entropy",), "value": ("mse",), "tokens": ("next_token", "masked_token")}
"""By what a table's target is: the losses that fit."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Spec):
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """L2; decoupled for adamw."""
    l1: float = Field(default=0.0, ge=0)
    """Weight of the sum of absolute parameters, added to the loss."""


class SgdOptimizer(_Optimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"]
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SgdOptimizer:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        return self


class AdamOptimizer(_Optimizer):
    """Adam, or AdamW with decoupled weight decay."""

    kind: Literal["adam", "adamw"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


OptimizerSpec = Annotated[SgdOptimizer | AdamOptimizer, Field(discriminator="kind")]


class _Schedule(Spec):
    warmup_steps: int = Field(default=0, ge=0)
    """The learning rate rises linearly over so many steps first."""


class ConstantSchedule(_Schedule):
    """The learning rate stays."""

    kind: Literal["constant"]


class CosineSchedule(_Schedule):
    """Half a cosine from the learning rate to `final_fraction` of it, over the whole run."""

    kind: Literal["cosine"]
    final_fraction: float = Field(default=0.0, ge=0, le=1)


class StepSchedule(_Schedule):
    """Multiplied by `gamma` every `every_steps` steps."""

    kind: Literal["step"]
    every_steps: int = Field(ge=1)
    gamma: float = Field(default=0.1, gt=0, le=1)


ScheduleSpec = Annotated[ConstantSchedule | CosineSchedule | StepSchedule, Field(discriminator="kind")]


class EarlyStopping(Spec):
    """Stop when the metric has not improved for `patience` evaluations."""

    metric: Literal["validation_loss", "validation_accuracy"] = "validation_loss"
    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class TrainingSpec(Spec):
    """The loop: how long, how large, how precise."""

    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    global_batch_size: int = Field(default=64, ge=1)
    """Samples of one optimizer step over all workers."""
    accumulate: int = Field(default=1, ge=1)
    """Each worker's share of a step is cut into so many micro-batches."""
    clip_norm: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "bf16", "fp16", "float64"] = "float32"
    """bf16 and fp16: autocast (fp16 with a gradient scaler, CUDA only)."""
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Where not given: after each epoch and at the end."""
    early_stopping: EarlyStopping | None = None
    init_from: ExistingPath | None = None
    """A checkpoint, run folder or model package whose weights are loaded first."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


class CheckpointSpec(Spec):
    """When the run's state is committed to storage."""

    every_steps: int = Field(default=50, ge=1)
    at_evaluations: bool = False
    """Also after each evaluation, so that there are weights for each value that was measured."""
    keep: int = Field(default=2, ge=2)
    """Newest so many are kept; never fewer than 2, so that one may turn out damaged."""


class ScalingSpec(Spec):
    """What each worker gets, and how many there are."""

    num_workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    """After a loss the run goes on with so many, and grows again to `num_workers` as soon as it can. Where
    not given: as many as `num_workers`, always."""
    spares: int = Field(default=0, ge=0)
    """Warmed workers beside those that train: one takes the place of a worker that is lost at once."""
    on_change: Literal["in_place", "restart"] = "in_place"
    """What another number of workers, or a loss, costs: in_place: survivors go on in a second or two, with
    what they hold in memory. restart: all workers are started again from a checkpoint, as Ray Train does."""
    budget: int | None = Field(default=None, ge=0)
    """So many workers at most on nodes that are started on demand; more only on machines that are there
    anyway. Where not given: no limit."""
    yield_s: float = Field(default=10.0, gt=0)
    """How long the run may take to give workers back that others need; then they are ended by force."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    gpus_per_worker: int = Field(default=0, ge=0)
    label_selector: dict[str, str] = {}
    """Node labels that a worker's node must have (Ray's label selector syntax)."""
    max_failures: int = Field(default=3, ge=0)
    """How often workers may be lost without a step in between before all are started again, from the newest
    checkpoint; and how often that may be."""

    @property
    def minimum(self) -> int:
        """The smallest number of workers that the run trains with."""
        return self.num_workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _holds_something(self) -> ScalingSpec:
        if self.minimum > self.num_workers:
            raise ValueError(
                f"min_workers ({self.minimum}) is more than num_workers ({self.num_workers}), the largest "
                "size; lower one or raise the other"
            )
        if self.spares and self.on_change == "restart":
            raise ValueError('spares are of no use with on_change = "restart", which ends all workers')
        if self.cpus_per_worker == 0 and self.gpus_per_worker == 0:
            raise ValueError("cpus_per_worker and gpus_per_worker are both 0; a worker needs one of them")
        return self


class CompletionSpec(Spec):
    """Text that the trained model completes at the end (gpt only)."""

    prompt: str = Field(min_length=1)
    num_tokens: int = Field(default=160, ge=1)
    temperature: float = Field(default=0.7, ge=0)


class TrainSpec(FileSpec):
    """One training run."""

    kind: Literal["train"]
    name: Name
    """Lower-case letters, digits, dots, dashes; run ids start with it."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    code: tuple[ExistingPath, ...] = ()
    """Files or packages (folders) of the user's own; they travel with the job and are importable there."""
    data: DataSpec
    model: ModelSpec
    loss: LossSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ConstantSchedule(kind="constant")
    compression: CompressionSpec = CompressionSpec()
    training: TrainingSpec
    checkpoint: CheckpointSpec = CheckpointSpec()
    scaling: ScalingSpec = ScalingSpec()
    completion: CompletionSpec | None = None

    @model_validator(mode="after")
    def _fits(self) -> TrainSpec:
        if self.completion is not None:
            self._check_completion()
        if self.data.kind == "digits" and self.loss.kind != "cross_entropy":
            raise ValueError(
                f"digits have class targets; loss.kind {self.loss.kind!r} does not fit: use cross_entropy"
            )
        if self.data.kind == "stdlib_text" and self.loss.kind not in ("next_token", "masked_token"):
            raise ValueError(
                f"stdlib_text has no labels; loss.kind {self.loss.kind!r} does not fit: use next_token"
            )
        if self.loss.kind == "next_token" and self.model.kind in ("mlp", "cnn"):
            raise ValueError(f"model.kind {self.model.kind!r} does not predict tokens; use gpt, gru or lstm")
        if self.loss.kind == "next_token" and (
            self.model.kind == "transformer" or getattr(self.model, "bidirectional", False)
        ):
            raise ValueError(
                "loss.kind 'next_token' needs a model that cannot look ahead; use gpt, gru or lstm"
            )
        if self.loss.kind == "masked_token" and self.model.kind in ("mlp", "cnn", "gpt"):
            raise ValueError(
                f"model.kind {self.model.kind!r} cannot fill in masked tokens; use transformer, gru or lstm"
            )
        stopping = self.training.early_stopping
        if stopping is not None and self.data.split.validation == 0:
            raise ValueError("early_stopping needs data.split.validation above 0")
        if isinstance(self.data, TableData):
            self._check_loss(self.data)
        self._check_compression()
        steps, warmup = self.training.steps, self.schedule.warmup_steps
        if steps is not None and warmup > steps:
            sentence = (
                f"{warmup} exceeds training.steps ({steps}), so the learning rate never gets there; lower "
                "one or raise the other"
            )
            raise located([(("schedule", "warmup_steps"), sentence, warmup)])
        return self

    def _check_completion(self) -> None:
        if self.model.kind != "gpt":
            raise ValueError(f'completion needs model.kind = "gpt", not {self.model.kind!r}')
        if isinstance(self.data, TableData) and self.data.input_kind == "tokens":
            sentence = (
                "completes text, and data.input_kind 'tokens' names no text for its tokens; use "
                'input_kind = "text", or take [completion] out'
            )
            raise located([(("completion",), sentence, None)])

    def _check_compression(self) -> None:
        kind, optimizer = self.compression.kind, self.optimizer
        if kind in ADAM_PAIRS and optimizer.kind == "sgd":
            sentence = (
                f"{kind!r} sends Adam's momentum, and optimizer.kind is 'sgd'; use adam or adamw there, or "
                "another compression"
            )
            raise located([(("compression", "kind"), sentence, kind)])
        if self.training.precision == "float64" and kind not in ("none", "auto") and ":" not in kind:
            sentence = (
                f"{kind!r} would round gradients that training.precision 'float64' makes; use none or auto, "
                "which is exact then, or precision 'float32'"
            )
            raise located([(("compression", "kind"), sentence, kind)])
        name, momentum = (
            ("momentum", optimizer.momentum) if optimizer.kind == "sgd" else ("betas[0]", optimizer.betas[0])
        )
        if self.compression.momentum_correction and momentum > 0:
            sentence = (
                f"topk then has the momentum, so optimizer.{name} ({momentum:g}) would be a second one; "
                "set it to 0"
            )
            raise located([(("compression", "momentum_correction"), sentence, True)])

    def _check_loss(self, data: TableData) -> None:
        kind = "tokens" if data.target is None else data.target_kind
        if self.loss.kind in _LOSSES[kind]:
            return
        found = "data has no target" if data.target is None else f"data.target_kind is {kind!r}"
        other = next((kind for kind in ("class", "value") if self.loss.kind in _LOSSES[kind]), None)
        way_out = f', or data.target_kind = "{other}"' if data.target is not None and other else ""
        sentence = (
            f"{self.loss.kind!r} does not fit, because {found}; use {' or '.join(_LOSSES[kind])}{way_out}"
        )
        raise located([(("loss", "kind"), sentence, self.loss.kind)])

    def remarks(self) -> list[str]:
        """What is allowed, and seldom meant: a sentence each."""
        compression = self.compression
        costly = sparse_under(
            self.optimizer.kind, compression.kind, has_momentum=compression.momentum_correction
        )
        return [] if costly is None else [f"compression.kind: {costly}"]
