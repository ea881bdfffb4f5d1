"""Adam for compressors that send its momentum in place of the gradient (`momentum.py`).

For a while such a pair is plain Adam: the gradient's mean comes uncompressed. Then the variance stays as it
is, parameter by parameter, and what backward leaves in `.grad` is the new momentum.

Source: 1-bit Adam (arXiv 2102.02888), Algorithm 1. There the bias corrections end with the first phase; here
the momentum's goes on, and the variance keeps that of its last change.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Adam, Optimizer

from eagleray.compression.compressor import Compressor
from eagleray.compression.topk import TopK
from eagleray.errors import InputError
from eagleray.specs.compression import sparse_under

BLOCK = 256
"""Elements with a common floor of their variance."""
BLOCK_FLOOR = 0.01
TENSOR_FLOOR = 1e-3
"""A variance that stays is at least so much of the mean variance of its block, and of its parameter. A code
of few bits gives an element that had hardly any gradient its block's scale: divided by the root of nearly
nothing that would be a step without bound. An element that had none at all, as in an embedding's rows that
come late, gets the mean of those that had."""
_log = logging.getLogger("eagleray.compression")
_plain_step = inspect.unwrap(Adam.step)
"""Without the hooks and the profiler's mark, which `MomentumAdam.step` has already."""


class MomentumAdam(Adam):
    """Adam (or AdamW) that takes a momentum where its compressor sends one; else, to the last bit, torch's.

    Clipping the gradient's norm between backward and step clips the momentum where that is what came. A step
    that is left out, as a gradient scaler does, leaves the momentum as it was.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        decoupled_weight_decay: bool = True,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        """Take the settings, which have torch's meaning; the defaults are AdamW's.

        Args:
            params: parameters, or groups of them.
            lr: learning rate.
            betas: of momentum and variance; the first must be the same in all groups.
            eps: added to the root of the variance.
            weight_decay: of the weights themselves (AdamW), or, not decoupled, added to the gradient.
            decoupled_weight_decay: see there.
            foreach: of torch's implementation, for uncompressed steps.
            fused: likewise.
        """
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            foreach=foreach,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        # A fused one would be called for gradients that are not finite, too, and leave them out by itself;
        # a gradient scaler shall leave out the whole step.
        self._step_supports_amp_scaling = False
        self._momenta: set[Tensor] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._momenta = set()

    def num_steps(self, parameter: Tensor) -> int:
        """Steps that a parameter has taken."""
        state = self.state.get(parameter)
        return int(state["step"]) if state else 0

    def is_frozen(self, parameter: Tensor) -> bool:
        """Whether its variance stays as it is: its last step took a momentum."""
        state = self.state.get(parameter)
        return bool(state) and bool(state.get("is_frozen"))

    def momentum(self, parameter: Tensor) -> Tensor:
        """Its averaged momentum, flat, in the order in which the parameter's elements lie in memory."""
        return flat(self.state[parameter]["exp_avg"], parameter)

    def expect(self, parameter: Tensor, *, momentum: bool) -> None:
        """Say what the parameter's next gradient is."""
        (self._momenta.add if momentum else self._momenta.discard)(parameter)

    def forget(self) -> None:
        """A backward pass begins: its gradients are plain ones, but for those that are said to be others."""
        self._momenta.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with what is in `.grad`; see `Adam.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter in self._momenta:
                    given.append((group, parameter, parameter.grad))
                    parameter.grad = None  # out of the plain step's sight
                elif self.is_frozen(parameter):
                    _thaw(self.state[parameter], group)
        try:
            _plain_step(self)
        finally:
            for _, parameter, momentum in given:
                parameter.grad = momentum
        for group, parameter, momentum in given:
            _take(self.state[parameter], group, parameter, momentum)
        self._momenta.clear()
        return loss


def _take(state: dict[str, Any], group: dict[str, Any], parameter: Tensor, momentum: Tensor) -> None:
    """One step of a parameter with a momentum, whose bias is not corrected."""
    beta1 = float(group["betas"][0])
    lr, decay = float(group["lr"]), group["weight_decay"]
    if not state.get("is_frozen"):
        _freeze(state, group, parameter)
    state["step"] += 1
    if decay and group["decoupled_weight_decay"]:
        parameter.mul_(1 - lr * decay)
    elif decay:
        momentum = momentum.add(parameter, alpha=decay * (1 - beta1))
    state["exp_avg"].copy_(momentum)
    denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
    parameter.addcdiv_(state["exp_avg"], denominator, value=-lr / (1 - beta1 ** int(state["step"])))


def _freeze(state: dict[str, Any], group: dict[str, Any], parameter: Tensor) -> None:
    """Make the variance what it is with its bias corrected, and nowhere too small."""
    variance = state["exp_avg_sq"]
    variance.div_(_correction(state, group))
    values = flat(variance, parameter)
    rest = -values.numel() % BLOCK
    blocks = torch.nn.functional.pad(values, (0, rest)).view(-1, BLOCK).float()
    counts = torch.full((len(blocks), 1), float(BLOCK), device=values.device)
    counts[-1] -= rest
    total = blocks.sum()
    floor = blocks.sum(dim=1, keepdim=True) / counts * BLOCK_FLOOR
    floor = torch.maximum(floor, total / values.numel() * TENSOR_FLOOR)
    had_none = blocks == 0
    mean = total / (~had_none).sum().clamp(min=1)
    values.copy_(torch.where(had_none, mean, torch.maximum(blocks, floor)).view(-1)[: values.numel()])
    if values.data_ptr() != variance.data_ptr():
        variance.copy_(torch.empty_like(parameter, dtype=variance.dtype).copy_(_unflat(values, parameter)))
    state["is_frozen"] = True


def _thaw(state: dict[str, Any], group: dict[str, Any]) -> None:
    """Let the variance change again: as if it had come about in all the steps so far."""
    state["exp_avg_sq"].mul_(_correction(state, group))
    state["is_frozen"] = False


def thaw(optimizer: Optimizer) -> None:
    """Let an optimizer that is not a `MomentumAdam` go on from the state of one, now and when one is loaded.

    It would correct the bias of variances that stood still a second time; so they become what they would be
    if they had come about in all the steps so far.
    """
    if not isinstance(optimizer, MomentumAdam):
        _thaw_all(optimizer)
        optimizer.register_load_state_dict_post_hook(_thaw_all)


def _thaw_all(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
            if state.pop("is_frozen", False) and "betas" in group:
                _thaw(state, group)
                del state["is_frozen"]


def _correction(state: dict[str, Any], group: dict[str, Any]) -> float:
    return 1 - float(group["betas"][1]) ** int(state["step"])


def flat(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of a parameter's shape as a vector, in the order of the parameter's memory, as in buckets."""
    if tensor.stride() != parameter.stride():  # channels_last, and a checkpoint that was not
        tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def _unflat(values: Tensor, parameter: Tensor) -> Tensor:
    return values.as_strided(parameter.shape, parameter.stride())


@runtime_checkable
class Paired(Protocol):
    """A compressor that works with one optimizer only."""

    pairs_with: type[Optimizer]

    def pair(self, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        """Take the optimizer, and the model's parameters by name. Raises: InputError: it does not fit."""
        ...


def pair(compressor: Compressor, optimizer: Optimizer | None, parameters: Mapping[str, Tensor]) -> None:
    """Bring a compressor and an optimizer together, before the first step.

    Two that go together at a cost in accuracy are warned of, once in a process of the first rank.

    Args:
        compressor: is given the optimizer, if it needs it.
        optimizer: of the model; None: not known.
        parameters: the model's, by name.

    Raises:
        InputError: one of the two needs another partner.
    """
    if isinstance(compressor, Paired):
        wanted = compressor.pairs_with
        if not isinstance(optimizer, wanted):
            found = "none was given" if optimizer is None else f"this is {type(optimizer).__name__}"
            raise InputError(
                f"compression {compressor.name} sends what only {wanted.__name__} understands, and {found}; "
                f"give eagleray.compression.{wanted.__name__} as the optimizer, or choose another compression"
            )
        compressor.pair(cast(Optimizer, optimizer), parameters)
    elif isinstance(optimizer, MomentumAdam):
        raise InputError(
            f"{type(optimizer).__name__} is made for compression onebit_adam and fourbit_adam, and this is "
            f"{compressor.name}; take torch.optim.AdamW, which is the same without them"
        )
    elif isinstance(compressor, TopK) and compressor.momentum:
        _refuse_momentum(optimizer)
    elif optimizer is not None:
        costly = sparse_under(type(optimizer).__name__, compressor.name, has_momentum=False)
        if costly is not None and not (dist.is_initialized() and dist.get_rank()):
            _warn_once(costly)


@cache
def _warn_once(text: str) -> None:
    _log.warning("compression: %s", text)


def _refuse_momentum(optimizer: Optimizer | None) -> None:
    """Raises: InputError: the optimizer has a momentum beside its compressor's."""
    for group in () if optimizer is None else optimizer.param_groups:
        momentum = group.get("momentum") or group.get("betas", (0.0,))[0]
        if momentum:
            raise InputError(
                "compression topk with momentum_correction has the momentum, and "
                f"{type(optimizer).__name__} has one of {float(momentum):g} besides; set that to 0"
            )
