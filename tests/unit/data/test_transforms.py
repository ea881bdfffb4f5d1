"""Augmentation and masking depend on (seed, epoch, position), not on the batch."""

import numpy as np
import pytest

from eagleray.data import Arrays, Augment, ByteTokenizer, Masking
from eagleray.errors import DataError
from eagleray.specs import IGNORED_TARGET, Signature
from eagleray.specs.data import Augment as AugmentSpec

IMAGES = np.arange(6 * 2 * 5 * 4, dtype=np.float32).reshape(6, 2, 5, 4)
TOKENS = np.random.default_rng(0).integers(0, 256, (6, 40))
TRANSFORMS = {
    "augment": (Augment(AugmentSpec(max_shift_pixels=2, horizontal_flip=True, noise_std=0.5)), IMAGES),
    "masking": (Masking(0.15), TOKENS),
}


def run(transform, inputs, positions, seed=1, epoch=0):
    positions = np.asarray(positions)
    return transform(Arrays(inputs[positions], positions), seed=seed, epoch=epoch, positions=positions)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_sample_changes_alike_in_every_batch(name):
    transform, inputs = TRANSFORMS[name]
    whole = run(transform, inputs, range(6))
    for positions in ([3], [5, 0], [2, 3, 4, 1]):
        part = run(transform, inputs, positions)
        np.testing.assert_array_equal(part.inputs, whole.inputs[positions])
        np.testing.assert_array_equal(part.targets, whole.targets[positions])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_seeds_and_epochs_change_it_and_the_kept_samples_stay(name):
    transform, inputs = TRANSFORMS[name]
    before = inputs.copy()
    results = [run(transform, inputs, range(6), seed, epoch).inputs for seed in (1, 2) for epoch in (0, 1)]
    assert all((a != b).any() for index, a in enumerate(results) for b in results[:index])
    np.testing.assert_array_equal(inputs, before)
    assert results[0].dtype == inputs.dtype


def test_shifts_move_whole_images_and_repeat_the_edge():
    transform = Augment(AugmentSpec(max_shift_pixels=1))
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    seen = set()
    for epoch in range(20):
        for image, source in zip(run(transform, IMAGES, range(6), epoch=epoch).inputs, padded, strict=True):
            shifts = [
                (y, x) for y in range(3) for x in range(3) if (image == source[:, y : y + 5, x : x + 4]).all()
            ]
            assert len(shifts) == 1
            seen.add(shifts[0])
    assert len(seen) == 9


def test_half_of_the_images_flip():
    transform = Augment(AugmentSpec(horizontal_flip=True))
    images = np.broadcast_to(IMAGES[:1], (400, 2, 5, 4))
    result = run(transform, images, range(400)).inputs
    is_flipped = (result == images[..., ::-1]).all(axis=(1, 2, 3))
    assert ((result == images).all(axis=(1, 2, 3)) ^ is_flipped).all()
    assert 150 < is_flipped.sum() < 250


def test_noise_is_normal_with_the_asked_deviation():
    transform = Augment(AugmentSpec(noise_std=0.5))
    noise = run(transform, np.zeros((200, 1, 16, 16), np.float32), range(200)).inputs
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 0.5) < 0.01
    assert abs((np.abs(noise) < 0.5).mean() - 0.683) < 0.01


def test_masked_tokens_become_the_targets():
    result = run(Masking(0.15), np.tile(TOKENS, (100, 1)), range(600))
    is_masked = result.inputs == ByteTokenizer.mask_token
    assert 0.13 < is_masked.mean() < 0.17
    expected = np.tile(TOKENS, (100, 1))
    np.testing.assert_array_equal(result.targets, np.where(is_masked, expected, IGNORED_TARGET))
    np.testing.assert_array_equal(result.inputs[~is_masked], expected[~is_masked])


def test_one_token_at_least_is_masked_and_padding_never():
    tokens = np.full((50, 9), ByteTokenizer.padding_token)
    tokens[:40, :3] = 7
    result = run(Masking(0.001), tokens, range(50))
    is_masked = result.inputs == ByteTokenizer.mask_token
    assert (is_masked[:40].sum(axis=1) == 1).all()
    assert not is_masked[:, 3:].any()
    assert not is_masked[40:].any()


def test_masking_takes_its_tokens_from_the_signature():
    tokens = {"input_kind": "tokens", "input_shape": (4,), "target_kind": "tokens", "vocabulary_size": 12}
    masking = Masking.of(0.5, Signature(**tokens, padding_token=10, mask_token=11))
    result = run(masking, np.array([[1, 2, 3, 10]]), [0])
    assert set(result.inputs[0]) <= {1, 2, 3, 10, 11}
    assert result.inputs[0, 3] == 10
    with pytest.raises(DataError, match="no mask_token in its signature"):
        Masking.of(0.5, Signature(**tokens))


@pytest.mark.parametrize("text", ["def f():\n    return 1", "", "naïve ☃ 漢字"])
def test_text_comes_back_from_its_bytes(text):
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.int64
    padded = [*tokens, ByteTokenizer.padding_token, ByteTokenizer.mask_token]
    assert ByteTokenizer().decode(padded) == text
