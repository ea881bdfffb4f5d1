"""Metrics of predicted tokens, summed up batch by batch: the logits of a whole part would not fit in memory.

Names: B batch, T positions, V vocabulary, N tokens that count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eagleray.errors import EvaluationError
from eagleray.evaluation.metrics import Array, Loss, Metrics, entropy, finite
from eagleray.specs import IGNORED_TARGET

_CHUNK_ELEMENTS = 1 << 22
"""So many logits at once become float64 (32 MiB)."""
_MAX_PERPLEXITY_LOSS = 700.0
"""exp of more is no float."""


@dataclass(frozen=True)
class Language(Metrics):
    """What predicted tokens are worth."""

    num_tokens: int
    loss_by_position: tuple[float | None, ...]
    """Mean loss at each place in the window, in nats; None where no token counted."""

    def details(self) -> dict[str, Any]:
        """Tokens that counted, and the loss by position."""
        return {"num_tokens": self.num_tokens, "loss_by_position": list(self.loss_by_position)}


class LanguageSums:
    """Grows by `add`; `result` has the metrics of all that was added."""

    def __init__(self, *, no_bits: str | None = None):
        """`no_bits`: why bits per byte cannot be told; None where each token is one byte of text."""
        self._no_bits = no_bits
        self._window_losses: list[Array] = []
        self._position_losses = np.zeros(0)
        self._position_counts = np.zeros(0, np.int64)
        self._token_counts = np.zeros(0, np.int64)
        self._num_hits = self._num_top_5 = self._num_windows = 0

    def add(self, targets_BT: Array, logits_BTV: Array) -> None:
        """Count one batch; targets may be IGNORED_TARGET. Raises: EvaluationError for NaN logits."""
        num_windows, length, vocabulary = logits_BTV.shape
        if not len(self._token_counts):
            self._position_losses = np.zeros(length)
            self._position_counts = np.zeros(length, np.int64)
            self._token_counts = np.zeros(vocabulary, np.int64)
        step = max(1, _CHUNK_ELEMENTS // (length * vocabulary))
        for start in range(0, num_windows, step):
            self._add(targets_BT[start : start + step], logits_BTV[start : start + step])

    def _add(self, targets_BT: Array, logits_BTV: Array) -> None:
        logits_BTV = finite(logits_BTV, "logits", self._num_windows).astype(np.float64)
        counts_BT = targets_BT != IGNORED_TARGET
        chosen_BT1 = np.where(counts_BT, targets_BT, 0)[..., None]
        logits_BTV -= logits_BTV.max(axis=2, keepdims=True)
        target_BT = np.take_along_axis(logits_BTV, chosen_BT1, axis=2)[..., 0]
        losses_BT = (np.log(np.exp(logits_BTV).sum(axis=2)) - target_BT) * counts_BT
        ranks_BT = (logits_BTV > target_BT[..., None]).sum(axis=2)
        is_hit_BT = logits_BTV.argmax(axis=2) == targets_BT
        counted_B = counts_BT.sum(axis=1)
        self._window_losses.append(losses_BT.sum(axis=1)[counted_B > 0] / counted_B[counted_B > 0])
        self._position_losses += losses_BT.sum(axis=0)
        self._position_counts += counts_BT.sum(axis=0)
        self._token_counts += np.bincount(targets_BT[counts_BT], minlength=len(self._token_counts))
        self._num_hits += int(is_hit_BT.sum())
        self._num_top_5 += int(((ranks_BT < 5) & counts_BT).sum())
        self._num_windows += len(targets_BT)

    def result(self) -> Language:
        """The metrics. Raises: EvaluationError where no token counted."""
        num_tokens = int(self._position_counts.sum())
        if num_tokens == 0:
            raise EvaluationError(
                f"none of the {self._num_windows} windows has a token to predict (all are padding); "
                "judge on other data"
            )
        loss = float(self._position_losses.sum()) / num_tokens
        values = {"loss": loss, "perplexity": math.exp(min(loss, _MAX_PERPLEXITY_LOSS))}
        if self._no_bits is None:
            values["bits_per_byte"] = loss / math.log(2)
        values |= {"accuracy": self._num_hits / num_tokens, "top_5_accuracy": self._num_top_5 / num_tokens}
        windows = Loss.of(np.concatenate(self._window_losses), entropy(self._token_counts))
        pairs = zip(self._position_losses.tolist(), self._position_counts.tolist(), strict=True)
        return Language(
            task="language modelling",
            num_samples=self._num_windows,
            values=values,
            loss=Loss(loss, windows.standard_error, windows.baseline),
            notes=() if self._no_bits is None else (f"Bits per byte are left out: {self._no_bits}",),
            num_tokens=num_tokens,
            loss_by_position=tuple(total / count if count else None for total, count in pairs),
        )
