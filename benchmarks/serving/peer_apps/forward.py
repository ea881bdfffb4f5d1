"""The tiny forward, as every peer has it: torch, one thread, weights from the file in $BENCH_WEIGHTS."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch


class Forward:
    """[N, inputs] float32 to [N, 10] float32."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        saved = np.load(os.environ["BENCH_WEIGHTS"])
        layers: list[torch.nn.Module] = []
        for number in range(len(saved.files) // 2):
            weight, bias = (torch.from_numpy(saved[f"{kind}{number}"]) for kind in ("weight", "bias"))
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data, linear.bias.data = weight, bias
            layers += [linear, torch.nn.ReLU()]
        self._module = torch.nn.Sequential(*layers[:-1]).eval()

    def __call__(self, values: Any) -> np.ndarray:
        """The outputs."""
        with torch.inference_mode():
            return self._module(torch.from_numpy(np.asarray(values, np.float32))).numpy()
