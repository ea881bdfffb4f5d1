"""`kind = "auto"`: measures the network and the codecs, predicts a step, chooses, and checks itself."""

from eagleray.compression.automatic.auto import Auto, Choice

__all__ = ["Auto", "Choice"]
