"""The order of an epoch: whole or in two levels, a pure function of (seed, epoch)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.data import Blocks, SampleOrder
from eagleray.data.hashing import hashed, key, permutation, uniform
from support.examples import examples

SOME = examples(40)
sizes_of_blocks = st.lists(st.integers(0, 9), min_size=1, max_size=25).filter(sum)


def whole_epoch(order, epoch=0):
    return order.positions(epoch, 0, order.num_samples)


def two_level(sizes, window, seed=1):
    return SampleOrder(sum(sizes), seed, Blocks(np.array(sizes), window))


@SOME
@given(num=st.integers(1, 300), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 9))
def test_every_epoch_visits_each_sample_once(num, seed, epoch):
    assert sorted(whole_epoch(SampleOrder(num, seed), epoch)) == list(range(num))


@SOME
@given(sizes=sizes_of_blocks, window=st.integers(1, 60), epoch=st.integers(0, 9))
def test_every_epoch_in_two_levels_visits_each_sample_once(sizes, window, epoch):
    assert sorted(whole_epoch(two_level(sizes, window), epoch)) == list(range(sum(sizes)))


@SOME
@given(sizes=sizes_of_blocks, window=st.integers(1, 60), data=st.data())
def test_any_piece_of_an_epoch_is_the_same_whatever_was_asked_before(sizes, window, data):
    order, expected = two_level(sizes, window), whole_epoch(two_level(sizes, window), 2)
    for _ in range(5):
        start = data.draw(st.integers(0, sum(sizes)))
        stop = data.draw(st.integers(start, sum(sizes)))
        whole_epoch(order, data.draw(st.integers(0, 2)))
        np.testing.assert_array_equal(order.positions(2, start, stop), expected[start:stop])


@SOME
@given(sizes=sizes_of_blocks, window=st.integers(9, 60))
def test_a_window_holds_no_more_samples_than_it_may(sizes, window):
    """A reader that drops its least recently used blocks to hold one window reads each block once."""
    block_of = np.repeat(np.arange(len(sizes)), sizes)[whole_epoch(two_level(sizes, window))].tolist()
    kept, reads = {}, []
    for block in block_of:
        if block not in kept:
            reads.append(block)
            while sum(kept.values()) + sizes[block] > window:
                del kept[next(iter(kept))]
        kept[block] = kept.pop(block, sizes[block])
    assert sorted(reads) == [block for block, size in enumerate(sizes) if size]


def test_seeds_and_epochs_give_other_orders():
    orders = {
        tuple(whole_epoch(SampleOrder(50, seed), epoch)) for seed in (0, 1, 2**62) for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_is_pinned():
    """Other numbers here would make every checkpoint's cursor mean other samples."""
    assert whole_epoch(SampleOrder(8, seed=7), 3).tolist() == [0, 7, 6, 1, 5, 3, 4, 2]
    assert whole_epoch(two_level([3, 2, 3], 5, seed=7), 3).tolist() == [3, 0, 1, 2, 4, 5, 7, 6]


def test_without_shuffling_it_counts():
    order = SampleOrder(9, 1, Blocks(np.array([4, 5]), 2), shuffle=False)
    assert order.positions(4, 3, 7).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("num", [2, 10, 1000])
def test_all_first_places_are_equally_likely(num):
    firsts = np.array([permutation(key(seed), num)[0] for seed in range(2000)])
    expected = 2000 / min(num, 10)
    counts = np.histogram(firsts, bins=min(num, 10), range=(0, num))[0]
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_uniform_numbers_are_uniform_and_differ():
    values = uniform(hashed(key(5), np.arange(100_000)))
    assert len(np.unique(values)) == len(values)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=50, range=(0, 1))[0]
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
