"""What a replica does with the calls of its links, where something behind it breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eagleray.serving.replica.handler import ReplicaHandler


class Breaking:
    """A predictor, a batcher and a call, of which the batcher takes nothing."""

    received_s = deadline_s = 0.0

    def inputs(self) -> dict[str, np.ndarray]:
        return {"x": np.ones((1, 2), np.float32)}

    def check(self, inputs: dict[str, np.ndarray]) -> int:
        return len(inputs["x"])

    def submit(self, request: Any) -> None:
        raise MemoryError


def test_a_call_that_the_batcher_does_not_take_is_forgotten() -> None:
    """Its session fails it; kept here, its values would be, too, and a cancel would drop what never came."""
    broken: Any = Breaking()
    handler = ReplicaHandler(broken, broken, None, lambda work: work())
    with pytest.raises(MemoryError):
        handler.infer(broken)
    assert not handler._requests
