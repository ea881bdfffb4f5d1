"""The log-mel front end: from a waveform to a spectrogram that models take as frames or as an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eagleray.specs import Signature

WINDOW_S = 0.025
HOP_S = 0.010
MAX_MELS = 64
FLOOR = 1e-6
"""Added to the mel power before the logarithm: silence is -13.8, not -inf."""


class LogMel(nn.Module):
    """Waveform [B, S] in [-1, 1] -> log-mel power [B, T, M], each sample with zero mean and unit variance.

    Has no parameters, and nothing in the state dict: its tables follow from the sample rate. Computes in
    float32 (or the input's float64) under autocast too, where half precision would lose the quiet bins.
    """

    window: Tensor
    mel_FM: Tensor

    def __init__(self, sample_rate_hz: int, num_samples: int):
        super().__init__()
        self.window_length = max(2, round(WINDOW_S * sample_rate_hz))
        self.hop = max(1, round(HOP_S * sample_rate_hz))
        self.fft_size = 1 << (self.window_length - 1).bit_length()
        num_bins = self.fft_size // 2 + 1
        self.num_mels = min(MAX_MELS, max(1, num_bins // 2))
        self.num_frames = num_samples // self.hop + 1
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)
        filters = mel_filters(num_bins, self.num_mels, sample_rate_hz)
        self.register_buffer("mel_FM", filters, persistent=False)

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Spectrogram [B, T, M]; T = S // hop + 1."""
        with torch.autocast(waveform_BS.device.type, enabled=False):
            spectrum_BFT = torch.stft(
                waveform_BS.to(self.window.dtype),
                self.fft_size,
                hop_length=self.hop,
                win_length=self.window_length,
                window=self.window,
                pad_mode="constant",
                return_complex=True,
            )
            power_BTF = spectrum_BFT.abs().square().transpose(1, 2)
            logarithm = (power_BTF @ self.mel_FM + FLOOR).log()
            mean = logarithm.mean(dim=(1, 2), keepdim=True)
            std = logarithm.std(dim=(1, 2), keepdim=True, correction=0)
            return (logarithm - mean) / (std + 1e-3)


def log_mel(signature: Signature) -> LogMel:
    """The front end for audio input of this signature."""
    assert signature.sample_rate_hz is not None
    return LogMel(signature.sample_rate_hz, signature.input_shape[-1])


def mel_filters(num_bins: int, num_mels: int, sample_rate_hz: int) -> Tensor:
    """Triangles [num_bins, num_mels] float32, evenly spaced in mel between 0 and half the sample rate.

    Source: the HTK book, 5.6: mel = 2595 log10(1 + f / 700).
    """
    top_mel = 2595 * torch.log10(torch.tensor(1 + sample_rate_hz / 2 / 700, dtype=torch.float64))
    corners_hz = 700 * (10 ** (torch.linspace(0, 1, num_mels + 2, dtype=torch.float64) * top_mel / 2595) - 1)
    bins_hz = torch.linspace(0, sample_rate_hz / 2, num_bins, dtype=torch.float64)[:, None]
    left, middle, right = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    rising = (bins_hz - left) / (middle - left)
    falling = (right - bins_hz) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()
