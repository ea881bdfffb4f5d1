import math

import pytest
import torch

from eagleray.models.audio import LogMel


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_higher_tone_lies_in_a_higher_band(rate):
    front = LogMel(rate, rate)
    time = torch.arange(rate) / rate
    tones = torch.stack([torch.sin(2 * math.pi * hz * time) for hz in (300, 1000, 3000)])
    spectrogram = front(tones)
    assert spectrogram.shape == (3, front.num_frames, front.num_mels)
    low, middle, high = spectrogram.mean(dim=1).argmax(dim=1).tolist()
    assert low < middle < high


@pytest.mark.parametrize("num_samples", [10, 160, 4000])
def test_silence_and_short_clips_are_finite(num_samples):
    front = LogMel(16000, num_samples)
    spectrogram = front(torch.zeros(2, num_samples))
    assert spectrogram.shape == (2, front.num_frames, front.num_mels)
    assert spectrogram.isfinite().all()


def test_loudness_does_not_matter_and_neither_does_autocast():
    front, clip = LogMel(16000, 1600), torch.rand(1, 1600) - 0.5
    torch.testing.assert_close(front(clip), front(clip * 0.5), atol=0.05, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(front(clip), front(clip), atol=0, rtol=0)
        assert front(clip).dtype == torch.float32


def test_it_stores_nothing():
    assert not LogMel(16000, 1600).state_dict()
