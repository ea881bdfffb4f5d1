"""The digest of what a loss consumed: it adds up, over ranks and steps, to the digest of all of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.data import Arrays, Loader
from eagleray.data.digests import LANES, Entry, Total, digest, lane_hashes
from support.examples import examples

PINNED = [
    [2641649195, 1077539499],
    [1504004986, 641916600],
    [2573094013, 1112024410],
    [2027177790, 2491407854],
]
SOME = examples(40)
samples = st.lists(st.integers(0, 2**40), max_size=40)


class Numbers:
    blocks = None

    def __init__(self, num_samples):
        self.num_samples = num_samples

    def fetch(self, positions):
        return Arrays(positions, positions)


def of(positions, epoch=0):
    return digest(epoch, np.array(positions, np.int64), np.ones(len(positions), np.float32))


def entry(**changes):
    fields = {"step": 3, "consumed_before": 16, "consumed_after": 24, "is_skipped": False}
    return Entry.of(of(range(8)), **{**fields, "world_size": 2, "generation": 1, **changes})


@SOME
@given(positions=samples, epoch=st.integers(0, 10**6), data=st.data())
def test_it_is_of_the_set_and_not_of_its_order_or_its_shares(positions, epoch, data):
    shuffled = data.draw(st.permutations(positions))
    cut = data.draw(st.integers(0, len(positions)))
    parts = of(shuffled[:cut], epoch) + of(shuffled[cut:], epoch)
    assert parts.tolist() == of(positions, epoch).tolist()
    assert parts.dtype == np.int64
    assert parts[0] == len(positions)


@SOME
@given(one=samples, other=samples)
def test_other_samples_have_another_digest(one, other):
    assert (of(one).tolist() == of(other).tolist()) == (sorted(one) == sorted(other))


def test_the_epoch_belongs_to_a_sample():
    assert of([5], epoch=0)[1:].tolist() != of([5], epoch=1)[1:].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_ranks_of_any_world_add_up_to_the_same(world_size):
    """Also where some have an empty share, which a sample of weight 0 fills."""
    loader = Loader(Numbers(53), global_batch_size=5, seed=1)
    shards = [loader.shard(50, rank, world_size) for rank in range(world_size)]
    sums = sum(digest(shard.epoch, shard.positions, shard.weights) for shard in shards)
    whole = loader.shard(50, 0, 1)
    assert sums.tolist() == of(whole.positions).tolist()
    assert sums[0] == 3


def test_the_hashes_are_pinned():
    """Other numbers here would make the journals of all runs look false."""
    assert lane_hashes(2, np.array([0, 41])).tolist() == PINNED


def test_the_lanes_are_uniform_and_independent():
    lanes = lane_hashes(0, np.arange(50_000)).astype(np.float64) / 2**32
    assert lanes.shape == (LANES, 50_000)
    for lane in lanes:
        assert abs(lane.mean() - 0.5) < 0.01
        assert abs(lane.std() - 12**-0.5) < 0.01
    correlations = np.corrcoef(lanes) - np.eye(LANES)
    assert np.abs(correlations).max() < 0.02


def test_an_entry_comes_back_from_json():
    made = entry(is_skipped=True)
    assert made.count == 8
    assert all(0 <= lane < 2**32 for lane in made.lanes)
    assert Entry.from_json(made.to_json()) == made
    assert made.to_json()[:4] == [3, 16, 24, 8]


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields[:-1],
        lambda fields: [*fields[:4], fields[4][:-1], *fields[5:]],
        lambda fields: ["3", *fields[1:]],
        lambda fields: [*fields[:4], 7, *fields[5:]],
        lambda fields: [1.5, *fields[1:]],
    ],
    ids=["too short", "a lane less", "text", "no lanes", "half a step"],
)
def test_what_is_no_entry_is_refused(change):
    with pytest.raises(ValueError, match="entry of a sample journal"):
        Entry.from_json(change(entry().to_json()))


def test_a_total_adds_entries_up_and_comes_back_from_json():
    entries = [entry(step=step) for step in range(1, 40)]
    total = Total().plus(entries[:7]).plus(entries[7:])
    assert total.count == 39 * 8
    assert total.lanes == tuple(39 * lane % 2**32 for lane in entries[0].lanes)
    assert Total.from_json({**total.to_json(), "parent": [1, 20]}) == total
