"""Where samples come from, and in which order each rank sees them.

`open_dataset` gives a dataset of parts; a `Loader` cuts a part into the ranks' shards as a pure function of
(consumed samples, rank, world size).
"""

from eagleray.data.loader import Loader, Shard, Transform
from eagleray.data.opening import open_dataset
from eagleray.data.order import SampleOrder
from eagleray.data.parts import Arrays, Blocks, Dataset, Part
from eagleray.data.tokenizer import ByteTokenizer
from eagleray.data.transforms import Augment, Masking

__all__ = [
    "Arrays",
    "Augment",
    "Blocks",
    "ByteTokenizer",
    "Dataset",
    "Loader",
    "Masking",
    "Part",
    "SampleOrder",
    "Shard",
    "Transform",
    "open_dataset",
]
