"""Architectures: from a spec and a dataset's signature to a torch module, its loss and its text.

Each model says in its docstring which inputs it takes; `pairs.py` holds the table.
"""

from eagleray.models.building import build
from eagleray.models.losses import num_correct, per_sample_loss
from eagleray.models.sampling import Sampler, complete

__all__ = ["Sampler", "build", "complete", "num_correct", "per_sample_loss"]
