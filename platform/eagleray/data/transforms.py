"""Random changes of training samples, drawn from (seed, epoch, position): no rank, batch or restart matters.

Names: B batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eagleray.data import hashing
from eagleray.data.parts import Array, Arrays, Positions
from eagleray.data.tokenizer import ByteTokenizer
from eagleray.errors import DataError
from eagleray.specs import IGNORED_TARGET, Signature
from eagleray.specs.data import Augment as AugmentSpec

_SHIFT_Y, _SHIFT_X, _FLIP, _NOISE, _MASK = 11, 12, 13, 14, 15


class Augment:
    """Shifts, flips and noise of images [B, C, H, W] float32."""

    def __init__(self, spec: AugmentSpec):
        self._spec = spec

    def __call__(self, arrays: Arrays, *, seed: int, epoch: int, positions: Positions) -> Arrays:
        """Changed images; a shift repeats the pixels of the edge."""
        images, spec = arrays.inputs, self._spec
        if spec.max_shift_pixels or spec.horizontal_flip:
            images = self._moved(images, seed, epoch, positions)
        if spec.noise_std:
            bits_BN = _bits_of_elements(seed, epoch, _NOISE, positions, images[0].size)
            images = images + _normal(bits_BN).reshape(images.shape) * np.float32(spec.noise_std)
        return Arrays(images, arrays.targets)

    def _moved(self, images_BCHW: Array, seed: int, epoch: int, positions: Positions) -> Array:
        batch, channels, height, width = images_BCHW.shape
        largest = self._spec.max_shift_pixels

        def shift(purpose: int) -> NDArray[np.int64]:
            values = hashing.uniform(_bits(seed, epoch, purpose, positions))
            return np.floor(values * (2 * largest + 1)).astype(np.int64) - largest

        y_BH = np.clip(np.arange(height) - shift(_SHIFT_Y)[:, None], 0, height - 1)
        x_BW = np.clip(np.arange(width) - shift(_SHIFT_X)[:, None], 0, width - 1)
        if self._spec.horizontal_flip:
            is_flipped = _bits(seed, epoch, _FLIP, positions) < np.uint64(1 << 63)
            x_BW = np.where(is_flipped[:, None], width - 1 - x_BW, x_BW)
        b, c = np.arange(batch)[:, None, None, None], np.arange(channels)[None, :, None, None]
        return images_BCHW[b, c, y_BH[:, None, :, None], x_BW[:, None, None, :]]


class Masking:
    """Hides tokens of the input and makes them the target (masked-token training)."""

    def __init__(
        self,
        fraction: float,
        mask_token: int = ByteTokenizer.mask_token,
        ignored: int = IGNORED_TARGET,
        padding_token: int | None = ByteTokenizer.padding_token,
    ):
        self._fraction = fraction
        self._mask_token = mask_token
        self._ignored = ignored
        self._padding_token = padding_token

    @classmethod
    def of(cls, fraction: float, signature: Signature) -> Masking:
        """With the tokens of a dataset. Raises: DataError if it has none to mask with."""
        if signature.mask_token is None:
            raise DataError(
                f"masked-token training needs tokens and a mask, and this dataset ({signature.input_kind} "
                "input) has no mask_token in its signature; use text, or add one to the vocabulary"
            )
        return cls(fraction, signature.mask_token, padding_token=signature.padding_token)

    def __call__(self, arrays: Arrays, *, seed: int, epoch: int, positions: Positions) -> Arrays:
        """Inputs with about `fraction` of the tokens masked, targets ignored everywhere else; both [B, T].

        Padding is never masked. One token at least is masked in each sample that has any.
        """
        tokens_BT = arrays.inputs
        values_BT = hashing.uniform(_bits_of_elements(seed, epoch, _MASK, positions, tokens_BT.shape[1]))
        if self._padding_token is not None:
            values_BT[tokens_BT == self._padding_token] = 2.0
        lowest_B1 = values_BT.min(axis=1, keepdims=True)
        is_masked_BT = (values_BT < np.maximum(self._fraction, np.nextafter(lowest_B1, 3))) & (values_BT < 1)
        targets_BT = np.where(is_masked_BT, tokens_BT, self._ignored)
        return Arrays(np.where(is_masked_BT, self._mask_token, tokens_BT), targets_BT)


def _bits(seed: int, epoch: int, purpose: int, positions: Positions) -> NDArray[np.uint64]:
    """64 random bits for each position [B]."""
    return hashing.hashed(hashing.key(seed, epoch, purpose), positions)


def _bits_of_elements(
    seed: int, epoch: int, purpose: int, positions: Positions, num: int
) -> NDArray[np.uint64]:
    """64 random bits for each of `num` elements of each position [B, num]."""
    return hashing.hashed(_bits(seed, epoch, purpose, positions)[:, None], np.arange(num))


def _normal(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Standard normal numbers, same shape, from the two halves of the bits.

    Source: Box and Muller (1958).
    """
    first = ((bits >> np.uint64(32)).astype(np.float32) + 1) * np.float32(2.0**-32)
    second = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.sqrt(-2 * np.log(first)) * np.cos(second)
