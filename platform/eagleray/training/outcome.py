"""What the driver wants to know of a run's end."""

from __future__ import annotations

from typing import Any

import torch

from eagleray import models
from eagleray.data import ByteTokenizer
from eagleray.training import state
from eagleray.training.evaluate import count_parameters, evaluate
from eagleray.training.parts import Parts
from eagleray.training.progress import Progress


def outcome(parts: Parts, progress: Progress) -> dict[str, Any]:
    """What the driver wants to know of the end; all ranks must call it.

    Raises: TrainingError where the ranks do not hold the same weights.
    """
    found: dict[str, Any] = {
        "progress": progress.to_json(),
        "total_steps": parts.total_steps,
        "num_parameters": count_parameters(parts.module),
        "dataset_digest": parts.dataset.digest,
        "signature": parts.dataset.signature.model_dump(mode="json"),
        "weights_digest": state.weights_digest(parts.module),
    }
    parts.agreement.same("weights at the end", found["weights_digest"])
    if parts.dataset.test is not None:
        found["test"] = evaluate(parts, parts.dataset.test)
    if parts.spec.completion is not None and parts.rank == 0:
        found["completion"] = complete(parts)
    return found


def complete(parts: Parts) -> str:
    """The spec's prompt and what the model makes of it."""
    completion, tokenizer = parts.spec.completion, ByteTokenizer()
    assert completion is not None
    sampler = models.Sampler(
        completion.temperature,
        generator=torch.Generator().manual_seed(parts.spec.seed),
        num_choices=tokenizer.padding_token,
    )
    parts.module.eval()
    produced = models.complete(
        parts.module,
        tokenizer.encode(completion.prompt).tolist(),
        num_tokens=completion.num_tokens,
        sampler=sampler,
        context=parts.dataset.signature.input_shape[0],
    )
    return completion.prompt + tokenizer.decode(list(produced))
