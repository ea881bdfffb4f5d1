"""How one rank's share is cut into micro-batches."""

import numpy as np
import pytest
import torch

from eagleray.data.loader import _cut
from eagleray.training.loop import num_micro_batches


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_every_rank_runs_as_many_forwards_and_none_on_nothing(world_size, accumulate):
    for global_size in range(1, 40):
        number = num_micro_batches(accumulate, global_size, world_size)
        assert 1 <= number <= accumulate
        for rank in range(world_size):
            share = _cut(global_size, rank + 1, world_size) - _cut(global_size, rank, world_size)
            pieces = torch.from_numpy(np.zeros(max(1, share))).tensor_split(number)  # an empty one is filled
            assert len(pieces) == number
            assert all(len(piece) for piece in pieces), (global_size, rank)


def test_as_many_as_asked_where_the_samples_suffice():
    assert num_micro_batches(4, 64, 2) == 4
    assert num_micro_batches(4, 5, 2) == 2
