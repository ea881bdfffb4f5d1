"""Gradient compression behind DDP's communication hook."""

from eagleray.compression import compressors as _compressors  # fills the register
from eagleray.compression.compressor import Compressor, make_compressor
from eagleray.compression.hook import Hook, attach
from eagleray.compression.optimizer import MomentumAdam
from eagleray.compression.stats import Stats
from eagleray.specs.compression import CompressionSpec

__all__ = ["CompressionSpec", "Compressor", "Hook", "MomentumAdam", "Stats", "attach", "make_compressor"]
del _compressors
