"""Shards: exact at every world size, from every cursor; the prefetching thread ends cleanly."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.data import Arrays, Blocks, Loader
from eagleray.data.prefetch import prefetched
from eagleray.errors import DataError
from support.examples import examples

SOME = examples(40)


class Numbers:
    """A part whose samples are their own positions; with blocks where asked."""

    def __init__(self, num_samples, blocks=None):
        self.num_samples = num_samples
        self.blocks = blocks

    def fetch(self, positions):
        return Arrays(positions.copy(), -positions)


def make(num=53, batch=8, seed=3, blocks=None, **options):
    return Loader(Numbers(num, blocks), global_batch_size=batch, seed=seed, **options)


def real(shard):
    return shard.inputs[shard.weights > 0].tolist()


def joined(shards):
    return [sample for shard in shards for sample in real(shard)]


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "eagleray-prefetch"]


@SOME
@given(num=st.integers(1, 70), batch=st.integers(1, 80), consumed=st.integers(0, 400), data=st.data())
def test_the_ranks_shards_together_are_the_batch_in_order(num, batch, consumed, data):
    world_size = data.draw(st.integers(1, 7))
    loader = make(num, batch)
    whole = loader.shard(consumed, 0, 1)
    shards = [loader.shard(consumed, rank, world_size) for rank in range(world_size)]
    assert joined(shards) == real(whole)
    assert {shard.global_size for shard in shards} == {len(real(whole))}
    assert {(shard.epoch, shard.consumed) for shard in shards} == {(whole.epoch, whole.consumed)}
    sizes = [len(real(shard)) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for shard in shards:
        assert len(shard.inputs) == len(shard.targets) == len(shard.weights) == len(shard.positions) >= 1
        assert shard.weights.dtype == np.float32


@SOME
@given(
    num=st.integers(1, 60),
    batch=st.integers(1, 25),
    worlds=st.lists(st.integers(1, 7), min_size=1, max_size=6),
)
def test_each_epoch_is_each_sample_once_while_the_world_size_changes(num, batch, worlds):
    loader, consumed, seen = make(num, batch), 0, []
    steps = 0
    while consumed < 2 * num:
        world_size = worlds[steps % len(worlds)]
        shards = [loader.shard(consumed, rank, world_size) for rank in range(world_size)]
        seen += joined(shards)
        consumed, steps = shards[0].consumed, steps + 1
    assert sorted(seen[:num]) == sorted(seen[num:]) == list(range(num))
    assert steps == 2 * loader.steps_per_epoch


@SOME
@given(consumed=st.integers(0, 200), in_blocks=st.booleans())
def test_a_run_goes_on_from_any_cursor_with_the_same_samples(consumed, in_blocks):
    blocks = Blocks(np.array([10, 0, 20, 23]), 25) if in_blocks else None
    first = make(blocks=blocks).shard(consumed, 0, 1)
    through = [first, *make(blocks=blocks).iterate(first.consumed, 0, 1, stop_after=8)]
    fresh = make(blocks=blocks)
    for before, after in itertools.pairwise(through):
        again = fresh.shard(before.consumed, 0, 1)
        np.testing.assert_array_equal(again.positions, after.positions)
        assert (again.epoch, again.consumed) == (after.epoch, after.consumed)


def test_another_batch_size_goes_on_without_loss():
    small, large = make(batch=7), make(batch=20)
    first = small.shard(0, 0, 1)
    rest = large.shard(first.consumed, 0, 1)
    epoch = make(batch=53).shard(0, 0, 1)
    assert real(first) + real(rest) == real(epoch)[:27]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 8, 60])
def test_once_gives_each_sample_once_and_every_rank_as_many_shards(world_size, batch):
    ranks = [list(make(10).once(rank, world_size, batch)) for rank in range(world_size)]
    assert len({len(shards) for shards in ranks}) == 1
    everything = [sample for shards in ranks for sample in joined(shards)]
    assert everything == list(range(10))
    for together in zip(*ranks, strict=True):
        assert {shard.global_size for shard in together} == {sum(len(real(shard)) for shard in together)}
        assert all(1 <= len(shard.inputs) <= batch for shard in together)


def test_transforms_see_seed_epoch_and_position():
    def note(arrays, *, seed, epoch, positions):
        return Arrays(arrays.inputs * 1000 + seed * 100 + epoch, positions)

    shard = make(seed=3, transform=note).shard(60, 0, 1)
    np.testing.assert_array_equal(shard.inputs, shard.positions * 1000 + 301)
    np.testing.assert_array_equal(shard.targets, shard.positions)


def test_iterating_ends_its_thread_when_closed():
    shards = make().iterate(0, 0, 1)
    assert not prefetch_threads()
    assert next(shards).consumed == 8
    assert len(prefetch_threads()) == 1
    shards.close()
    assert not prefetch_threads()


def test_iterating_ends_its_thread_when_exhausted():
    assert [shard.consumed for shard in make(20).iterate(16, 0, 1, stop_after=3)] == [20, 28, 36]
    assert not prefetch_threads()


def test_iterating_ends_its_thread_when_the_loop_breaks():
    def step():
        for _ in make().iterate(0, 0, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step()
    assert not prefetch_threads()


def test_an_exception_of_the_thread_is_raised_in_its_place():
    class Broken(Numbers):
        def fetch(self, positions):
            if 40 in positions:
                raise DataError("x.parquet: row 40 is broken")
            return super().fetch(positions)

    loader = Loader(Broken(53), global_batch_size=8, seed=0, shuffle=False)
    shards = loader.iterate(0, 0, 1)
    assert [next(shards).consumed for _ in range(5)] == [8, 16, 24, 32, 40]
    with pytest.raises(DataError, match="row 40 is broken"):
        next(shards)
    assert not prefetch_threads()


def test_no_more_is_made_ahead_than_asked():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    ahead = prefetched(items(), 2)
    for taken in range(10):
        assert next(ahead) == taken
        assert len(made) <= taken + 1 + 2
    ahead.close()
    assert len(made) <= 12
