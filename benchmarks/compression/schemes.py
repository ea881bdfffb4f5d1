"""The contestants: one model each with its optimizer, and one way of bringing gradients together.

A scheme is built in the workers, by name. Torch's hooks get a process group of their own each, as ours do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, get_args

import torch
import torch.distributed as dist
from tasks import weights
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression import compressor
from eagleray.specs.compression import ADAM_PAIRS, CompressionSpec, Kind

WIDTHS = (784, 2048, 2048, 2048, 100)
BATCH_SIZE = 16
NUM_PARAMETERS = sum(a * b + b for a, b in itertools.pairwise(WIDTHS))
SHAPES = [shape for a, b in itertools.pairwise(WIDTHS) for shape in ((b, a), (b,))]
HIGH = ("none", "bf16", "fp16", "int8", "int8_ring")
"""What `auto` may choose from with fidelity high, which is the default."""
WARMING = ("topk", "powersgd", "onebit_adam", "fourbit_adam")
WARMUP_STEPS = 2
ADAM_LR = 1e-6
"""Of the Adam pairs, whose variance stands still after so few steps of one batch."""
GROUP_TIMEOUT_S = 600.0  # the parent's limit comes first
_number = itertools.count()


class Contestant(Protocol):
    """A model in training, in one worker."""

    def step(self) -> None:
        """One optimizer step; returns when it is done."""
        ...

    def facts(self) -> dict[str, Any]:
        """What it says of itself: bytes counted, a choice."""
        ...

    def close(self) -> None:
        """End its threads and its group."""
        ...


@dataclass(frozen=True)
class Scheme:
    """One line of the tables."""

    name: str
    family: str
    """floor, torch or ours."""
    formula: str
    """Name of its bytes' formula in `arithmetic`."""
    build: Callable[[], Contestant]
    """To be called in a worker, by all ranks at once."""
    is_doubtful: bool = False
    """Tried alone first: it may fail or hang, and take the workers with it."""
    warm_steps: int = 2
    """The first cuts buckets otherwise than those after it."""


def _module() -> nn.Sequential:
    """The network, without memory."""
    with torch.device("meta"):
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(WIDTHS)]
    return nn.Sequential(*itertools.chain.from_iterable(layers))


@cache
def _first_weights() -> dict[str, Tensor]:
    """The same on all ranks, drawn once in a process."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.empty(value.shape).uniform_(-0.02, 0.02, generator=generator)
        for name, value in _module().state_dict().items()
    }


class Mlp:
    """10.2 M parameters, SGD with momentum; the same start on all ranks, the same batch every step.

    DDP and the optimizer are set as the training loop sets them, for every contestant.
    """

    def __init__(self, attach: Callable[[DistributedDataParallel], Any] | None, **options: Any):
        self._module = _module().to_empty(device="cpu")
        self._module.load_state_dict(_first_weights())
        torch.manual_seed(1000 + (dist.get_rank() if dist.is_initialized() else 0))
        self._x = torch.randn(BATCH_SIZE, WIDTHS[0])
        self._y = torch.randint(WIDTHS[-1], (BATCH_SIZE,))
        self._model: nn.Module = self._module
        self._optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self._module.parameters(), lr=1e-3, momentum=0.9, fused=True
        )
        self._closing: Callable[[], None] = lambda: None
        if attach is not None:
            model = DistributedDataParallel(
                self._module, init_sync=False, gradient_as_bucket_view=True, **options
            )
            self._model = model
            attach(model)

    def step(self) -> None:
        """Forward, backward with its exchange, update."""
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(self._model(self._x)).backward()
        self._optimizer.step()

    def _loss(self, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(y, self._y)

    def facts(self) -> dict[str, Any]:
        """What its weights are."""
        return weights(self._module)

    def close(self) -> None:
        """See Contestant."""
        self._closing()


class Hooked(Mlp):
    """With a communication hook of torch's, or none, on a group of its own."""

    def __init__(self, register: Callable[[DistributedDataParallel, Any], None], **options: Any):
        group = groups.new_group(f"torch-{next(_number)}", backend="gloo", timeout_s=GROUP_TIMEOUT_S)
        process_group = group.process_group
        super().__init__(lambda model: register(model, process_group), process_group=process_group, **options)
        self._closing = lambda: groups.close(group)


class Ours(Mlp):
    """Through `eagleray.compression`."""

    _hook: compression.Hook

    def __init__(self, kind: str):
        # What it sends at first is not what it sends: the time of a step is measured after that.
        warmup = {"warmup_steps": WARMUP_STEPS} if kind in WARMING else {}
        spec = CompressionSpec.model_validate({"kind": kind, **warmup})

        def attach(model: DistributedDataParallel) -> None:
            if kind in ADAM_PAIRS:
                self._optimizer = compression.MomentumAdam(model.parameters(), lr=ADAM_LR)
            self._hook = compression.attach(model, spec, optimizer=self._optimizer)

        super().__init__(attach)
        self._closing = self._hook.close

    def facts(self) -> dict[str, Any]:
        """Bytes that the hook counted, and whatever it says of a choice."""
        choice = self._hook.choice()
        return {
            **super().facts(),
            "counted_bytes": self._hook.stats().sent_bytes,
            "choice": None if choice is None else {"kind": choice.kind, "reason": choice.reason},
        }


def _hook(name: str) -> Callable[[DistributedDataParallel, Any], None]:
    """Registers one of torch's hooks that take a process group as their state."""

    def register(model: DistributedDataParallel, process_group: Any) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, quantization_hooks

        hook = getattr(default_hooks, name, None) or getattr(quantization_hooks, name)
        model.register_comm_hook(process_group, hook)

    return register


def _powersgd(name: str) -> Callable[[DistributedDataParallel, Any], None]:
    def register(model: DistributedDataParallel, process_group: Any) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        state = powerSGD_hook.PowerSGDState(process_group, matrix_approximation_rank=4, start_powerSGD_iter=2)
        model.register_comm_hook(state, getattr(powerSGD_hook, name))

    return register


def _torch_schemes() -> list[Scheme]:
    quantised = "torch_allgather8"
    rows: list[tuple[str, str, Callable[[DistributedDataParallel, Any], None], dict[str, Any]]] = [
        ("torch fp16", "fp16", _hook("fp16_compress_hook"), {}),
        ("torch bf16", "bf16", _hook("bf16_compress_hook"), {}),
        ("torch quantisation per tensor", quantised, _hook("quantization_pertensor_hook"), {}),
        ("torch quantisation per channel", quantised, _hook("quantization_perchannel_hook"), {}),
        ("torch batched powersgd r4", "?", _powersgd("batched_powerSGD_hook"), {}),
        ("torch powersgd r4", "torch_powersgd", _powersgd("powerSGD_hook"), {}),
        (
            "torch powersgd r4, one bucket",
            "torch_powersgd",
            _powersgd("powerSGD_hook"),
            {"bucket_cap_mb": 4000},
        ),
    ]
    return [
        Scheme(
            name,
            "torch",
            formula,
            lambda register=register, options=options: Hooked(register, **options),
            is_doubtful=name != "torch fp16",
            warm_steps=4 if "powersgd" in name else 2,
        )
        for name, formula, register, options in rows
    ]


def kinds() -> list[str]:
    """Every kind that the spec knows and that is registered, in the order of the spec; and `auto`."""
    registered = {*compressor.kinds(), "auto"}
    return [kind for kind in get_args(Kind) if kind in registered]


def _warm_steps(kind: str) -> int:
    return 20 if kind == "auto" else 2 + WARMUP_STEPS if kind in WARMING else 2


def all_schemes() -> dict[str, Scheme]:
    """By name, in the order of the tables."""
    found = [
        Scheme("compute only", "floor", "compute only", lambda: Mlp(None)),
        Scheme("DDP dense", "torch", "dense", lambda: Hooked(lambda model, process_group: None)),
        *_torch_schemes(),
        *(
            Scheme(kind, "ours", kind, lambda kind=kind: Ours(kind), warm_steps=_warm_steps(kind))
            for kind in kinds()
        ),
    ]
    return {scheme.name: scheme for scheme in found}


assert sum(map(math.prod, SHAPES)) == NUM_PARAMETERS
