"""Recurrent networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eagleray.models.sequence import Steps, mean_over_steps
from eagleray.models.sizes import num_outputs
from eagleray.specs import Signature
from eagleray.specs.model import RecurrentModel

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """An RNN, GRU or LSTM over the steps of the input (see `Steps`).

    Class and value targets: the mean of the outputs over all steps but padding -> [B, num_classes] or [B, V].
    Token targets: every step predicts -> [B, T, vocabulary]. Dropout stands between layers and before the
    head.
    """

    def __init__(self, spec: RecurrentModel, signature: Signature):
        super().__init__()
        self.per_step = signature.target_kind == "tokens"
        self.steps = Steps(signature, spec.embedding)
        self.cells = CELLS[spec.kind](
            self.steps.size,
            spec.hidden,
            num_layers=spec.num_layers,
            bidirectional=spec.bidirectional,
            dropout=spec.dropout if spec.num_layers > 1 else 0.0,
            batch_first=True,
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(spec.hidden * (2 if spec.bidirectional else 1), num_outputs(signature))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits or values [B, N]; for token targets logits [B, T, vocabulary]."""
        steps, keep = self.steps(inputs)
        outputs = self._walk(steps, keep)
        return self.head(self.dropout(outputs if self.per_step else mean_over_steps(outputs, keep)))

    def _walk(self, steps: Tensor, keep: Tensor | None) -> Tensor:
        """Outputs [B, T, D]; a padded end is not walked, so the way back starts at the last token."""
        if keep is None or bool(keep.all()):
            return self.cells(steps)[0]
        places = torch.arange(1, keep.shape[1] + 1, device=keep.device)
        lengths = (keep * places).amax(dim=1).cpu()
        packed = pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=steps.shape[1])[0]
