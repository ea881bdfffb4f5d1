"""The two trainings of part two: a character transformer, and a small CNN on digits in noise."""

from __future__ import annotations

import copy
import hashlib
import math
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CONTEXT, BATCH_SIZE = 64, 8
NOISE = 0.35
"""Standard deviation added to the digits' pixels (0 to 1). Without it the loss vanishes, and so does the
scale by which differences are judged."""


class Characters:
    """Next byte of the standard library's own text; 0.64 M parameters."""

    length = 1
    """Its trainings have so many times the steps asked for."""

    def model(self) -> nn.Module:
        """Three pre-norm layers of width 128."""
        return _Transformer()

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [BATCH_SIZE, CONTEXT] each."""
        text = _text()[:-100_000]
        return _windows(text, torch.randint(len(text) - CONTEXT - 1, (BATCH_SIZE,), generator=generator))

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Windows of the last 100 kB."""
        text = _text()[-100_000:]
        return _windows(text, torch.linspace(0, len(text) - CONTEXT - 2, 512).long())


class Digits:
    """scikit-learn's 8x8 digits in noise; a CNN of 25 thousand parameters."""

    length = 2

    def model(self) -> nn.Module:
        """Two convolutions, two linear layers. Smooth: kinks make chaos of differences that mean nothing."""
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, padding=1), nn.GELU()),
            *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.GELU(), nn.Linear(64, 10)),
        )

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images float32 [16, 1, 8, 8] with fresh noise, classes int64 [16]."""
        x, y = _digits()
        chosen = torch.randint(len(x) - 400, (16,), generator=generator)
        return x[chosen] + NOISE * torch.randn(16, 1, 8, 8, generator=generator), y[chosen]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The last 400 images, each in eight noises."""
        x, y = (part[-400:].repeat_interleave(8, 0) for part in _digits())
        return x + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y


class _Transformer(nn.Module):
    def __init__(self, width: int = 128, layers: int = 3):
        super().__init__()
        self.embedding, self.position = nn.Embedding(128, width), nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(_fresh(layer) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128, bias=False)
        mask = torch.full((CONTEXT, CONTEXT), -math.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position.weight
        for layer in self.layers:
            h = layer(h, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h))


def _fresh(layer: nn.TransformerEncoderLayer) -> nn.TransformerEncoderLayer:
    """A copy with weights of its own."""
    layer = copy.deepcopy(layer)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return layer


TASKS: dict[str, type[Characters] | type[Digits]] = {"char": Characters, "cnn": Digits}


def weights(module: nn.Module) -> dict[str, Any]:
    """`digest` of the parameters' bytes, the same on all ranks whose replicas are; and `is_finite`."""
    digest, is_finite = hashlib.blake2b(digest_size=16), True
    for parameter in module.parameters():
        values = parameter.detach().contiguous()
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
        is_finite &= bool(values.isfinite().all())
    return {"digest": digest.hexdigest(), "is_finite": is_finite}


def _windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    at = starts[:, None] + torch.arange(CONTEXT + 1)
    window = text[at].long()
    return window[:, :-1], window[:, 1:]


@cache
def _text() -> Tensor:
    """About 2 MB of ASCII, uint8."""
    folder, found, size = Path(sysconfig.get_paths()["stdlib"]), [], 0
    for path in sorted(folder.glob("*.py")):
        data = bytes(byte for byte in path.read_bytes() if byte < 128)
        found.append(data)
        size += len(data)
        if size > 2_000_000:
            break
    return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.uint8)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    return x[order], torch.from_numpy(digits.target).long()[order]
