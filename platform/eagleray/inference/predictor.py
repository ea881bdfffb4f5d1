"""`Predictor`: raw arrays in, the card's outputs out; evaluation and services share it, so labels agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from eagleray.device import Place
from eagleray.packaging import ModelPackage
from eagleray.specs import ModelCard

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]


class Predictor:
    """A package's model on a device. Not for two threads at once."""

    def __init__(self, package: ModelPackage, place: Place | None = None) -> None:
        """Build the module, load its weights, and put it on the place's device (the CPU where not given).

        Raises:
            PackageError: as `ModelPackage.build_module`.
        """
        raise NotImplementedError

    @property
    def card(self) -> ModelCard:
        """The package's card."""
        raise NotImplementedError

    @property
    def module(self) -> nn.Module:
        """The model itself, on its device, in evaluation mode (for generation)."""
        raise NotImplementedError

    def check(self, inputs: Mapping[str, Array]) -> int:
        """The number of samples of `inputs`.

        Raises:
            InputError: a wrong or missing name, dtype (float32, int64; str for text), shape, a NaN, a token
                outside the vocabulary, or no sample at all.
        """
        raise NotImplementedError

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The card's outputs for raw inputs (as `ModelCard.inputs` names them), each with the batch first.

        `label` is an array of str, `class` int64, the others float32. A sample's label does not depend on the
        batch it comes in; its numbers may, in their last bits.

        Raises:
            InputError: as `check`.
        """
        raise NotImplementedError

    def encode(self, inputs: Mapping[str, Array]) -> Array:
        """The model's own input for raw inputs that `check` accepts: normalised, tokenised, padded."""
        raise NotImplementedError

    def predict_encoded(self, encoded: Array) -> dict[str, Array]:
        """As `predict`, for inputs as a dataset's parts yield them (normalised and tokenised already)."""
        raise NotImplementedError

    def warm_up(self, batch_size: int = 1) -> None:
        """Run once on zeros, so that the first request need not pay for it."""
        raise NotImplementedError
