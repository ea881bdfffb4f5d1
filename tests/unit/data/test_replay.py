"""Loaders that lose, repeat or swap samples are found, with step and samples; exact ones are proven."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.data import Arrays, Blocks, Loader, SampleOrder, suspects
from eagleray.data.digests import Entry, digest
from eagleray.data.replay import SEARCHED_STEPS, replay
from support.examples import examples

SOME = examples(40)
NUM, BATCH, SEED = 50, 8, 3
BLOCKS = Blocks(np.array([10, 0, 25, 15]), 30)


class Numbers:
    def __init__(self, num_samples, blocks=None):
        self.num_samples, self.blocks = num_samples, blocks

    def fetch(self, positions):
        return Arrays(positions, positions)


def order(num=NUM, blocks=None):
    return SampleOrder(num, SEED, blocks)


def walk(num_steps, *, worlds=(2,), num=NUM, batch=BATCH, blocks=None, plant=None, skipped=()):
    """The entries of a run whose world changes with every step.

    `plant(step, rank, shard)` returns the positions and the epoch that the rank takes in place of its shard.
    """
    loader = Loader(Numbers(num, blocks), global_batch_size=batch, seed=SEED)
    entries, consumed = [], 0
    for step, world in zip(range(1, num_steps + 1), itertools.cycle(worlds), strict=False):
        sums = np.zeros(5, np.int64)
        after = consumed
        for rank in range(world):
            shard = loader.shard(consumed, rank, world)
            after = shard.consumed
            positions, epoch = shard.positions[shard.weights > 0].tolist(), shard.epoch
            if plant is not None:
                positions, epoch = plant(step, rank, positions, epoch)
            sums += digest(epoch, np.array(positions, np.int64), np.ones(len(positions), np.float32))
        entries.append(
            Entry.of(
                sums,
                step=step,
                consumed_before=consumed,
                consumed_after=after,
                is_skipped=step in skipped,
                world_size=world,
                generation=0,
            )
        )
        consumed = after
    return entries


def at(step_, rank_, change):
    """A plant at one rank of one step."""

    def plant(step, rank, positions, epoch):
        return (change(positions), epoch) if (step, rank) == (step_, rank_) else (positions, epoch)

    return plant


def in_order(epoch=0, start=0, stop=NUM, blocks=None):
    return order(blocks=blocks).positions(epoch, start, stop).tolist()


def only(replayed):
    [finding] = replayed.findings
    assert not replayed.is_exact
    return finding


@SOME
@given(
    num=st.integers(1, 70),
    batch=st.integers(1, 80),
    worlds=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    num_steps=st.integers(0, 30),
)
def test_an_exact_run_is_proven_at_every_world_size(num, batch, worlds, num_steps):
    entries = walk(num_steps, worlds=worlds, num=num, batch=batch)
    replayed = replay(order(num), entries)
    assert replayed.is_exact
    reached = entries[-1].consumed_after if entries else 0
    assert replayed.total.count == reached == sum(epoch.num_once for epoch in replayed.epochs)
    assert [epoch.epoch for epoch in replayed.epochs] == list(range(1, -(-reached // num) + 1))
    assert all(epoch.num_reached == epoch.num_once for epoch in replayed.epochs)
    assert all(epoch.num_reached == num for epoch in replayed.epochs[:-1])


@SOME
@given(step=st.integers(1, 14), world=st.integers(1, 3), data=st.data())
@pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["in memory", "in blocks"])
@pytest.mark.parametrize("kind", ["skipped", "repeated", "swapped"])
def test_one_sample_is_found_with_its_step_and_its_id(kind, blocks, step, world, data):
    epoch, first = divmod(step - 1, 7)
    batch = in_order(epoch, first * 8, min(first * 8 + 8, NUM), blocks)
    others = [sample for sample in range(NUM) if sample not in batch]
    own = data.draw(st.sampled_from(batch))
    other = data.draw(st.sampled_from(batch if kind == "repeated" else others))
    if data.draw(st.booleans()) and kind != "skipped":
        other = data.draw(st.sampled_from([sample for sample in range(NUM) if sample != own]))

    def plant(step_, rank, positions, epoch):
        if step_ == step and own in positions:
            if kind != "repeated":
                positions.remove(own)
            if kind != "skipped":
                positions.append(other)
        return positions, epoch

    replayed = replay(order(blocks=blocks), walk(20, worlds=[world], blocks=blocks, plant=plant))
    finding = only(replayed)
    assert (finding.step, finding.kind) == (step, kind)
    assert finding.missing == (() if kind == "repeated" else (own,))
    assert finding.extra == (() if kind == "skipped" else (other,))
    assert f"step {step} " in finding.text
    assert all(f"sample {sample} of epoch {epoch + 1}" in finding.text for sample in finding.missing)
    counted = replayed.epochs[epoch]
    assert (counted.num_missing, counted.num_repeated) == (len(finding.missing), len(finding.extra))
    assert counted.num_once == NUM - len(finding.missing) - len(finding.extra)
    rest = [other for other in replayed.epochs if other is not counted]
    assert all(other.num_once == other.num_reached for other in rest)


def test_the_words_for_one_sample():
    batch, later = in_order(0, 8, 16), in_order(0, 16, 24)
    plants = {
        f"step 2 skipped sample {batch[0]} of epoch 1": lambda own: own[1:],
        f"step 2 took sample {batch[5]} of epoch 1 twice": lambda own: [*own, batch[5]],
        f"step 2 took sample {later[2]} of epoch 1 besides, which belongs to step 3": lambda own: [
            *own,
            later[2],
        ],
        f"step 2 took sample {batch[1]} of epoch 1 twice, and not sample {batch[0]} of epoch 1": lambda own: [
            batch[1],
            *own[1:],
        ],
        f"step 2 took sample {later[2]} of epoch 1, which belongs to step 3, and not sample {batch[0]} of "
        "epoch 1": lambda own: [later[2], *own[1:]],
    }
    for text, change in plants.items():
        assert only(replay(order(), walk(10, plant=at(2, 0, change)))).text == text
    unreached = at(2, 0, lambda own: [*own, in_order(0, 40, 41)[0]])
    assert "belongs to a later step" in only(replay(order(), walk(3, plant=unreached))).text


@pytest.mark.parametrize("world", [2, 3])
def test_the_share_of_a_rank_that_was_lost(world):
    replayed = replay(order(), walk(10, worlds=[world], plant=at(4, 1, lambda own: [])))
    finding = only(replayed)
    batch = in_order(0, 24, 32)
    assert (finding.step, finding.kind) == (4, "skipped")
    assert list(finding.missing) == (batch[4:] if world == 2 else batch[3:6])
    assert replayed.epochs[0].num_missing == len(finding.missing)


def test_a_rank_with_an_old_cursor():
    old = in_order(0, 16, 20)
    finding = only(replay(order(), walk(10, plant=at(4, 0, lambda own: old))))
    assert (finding.kind, list(finding.missing), list(finding.extra)) == ("swapped", in_order(0, 24, 28), old)
    assert "4 samples" in finding.text
    assert "belong to step 3" in finding.text


def test_a_rank_that_cuts_for_another_world_size():
    batch = in_order(0, 24, 32)
    finding = only(replay(order(), walk(10, plant=at(4, 1, lambda own: batch[6:]))))
    assert (finding.kind, list(finding.missing)) == ("skipped", batch[4:6])


def test_the_batch_of_another_step_and_of_another_epoch():
    def plant(step, rank, positions, epoch):
        if step == 9:  # the second batch of epoch 2
            epoch = 0
            positions = in_order(0, 0, 8)[rank * 4 : rank * 4 + 4]
        return positions, epoch

    replayed = replay(order(), walk(14, plant=plant))
    finding = only(replayed)
    assert list(finding.missing) == in_order(1, 8, 16)
    assert list(finding.extra) == in_order(0, 0, 8)
    assert "of epoch 1, which belong to step 1, and not 8 samples" in finding.text
    assert [epoch.num_repeated for epoch in replayed.epochs] == [8, 0]
    assert [epoch.num_missing for epoch in replayed.epochs] == [0, 8]


def test_what_cannot_be_told_apart_is_named_whole():
    """Two samples lost at two places: more than the search looks for."""
    batch = in_order(0, 8, 16)
    replayed = replay(order(), walk(10, worlds=[1], plant=at(2, 0, lambda own: [*own[1:4], *own[5:]])))
    finding = only(replayed)
    assert (finding.step, finding.kind) == (2, "unknown")
    assert finding.text == (
        f"step 2 took 6 samples, and not those that belong to it: 8 samples ({', '.join(map(str, batch))})"
    )
    first = replayed.epochs[0]
    assert (first.num_unknown, first.num_missing, first.num_once) == (8, 0, NUM - 8)


def test_a_fault_of_every_step_is_searched_for_a_while(monkeypatch):
    searched = []
    monkeypatch.setattr("eagleray.data.replay.find_fault", lambda order, entry: searched.append(entry.step))
    replayed = replay(order(), walk(40, plant=lambda step, rank, own, epoch: (own[1:], epoch)))
    assert len(searched) == SEARCHED_STEPS
    assert [finding.step for finding in replayed.findings] == list(range(1, 41))


def test_an_epoch_is_searched_in_pieces_that_fit_in_memory(monkeypatch):
    monkeypatch.setattr(suspects, "_CHUNK_SAMPLES", 7)
    for start in range(NUM - 4):
        other = in_order(0, start, start + 4)
        replayed = replay(order(), walk(10, plant=at(2, 0, lambda own, other=other: other)))
        assert replayed.is_exact == (start == 8)
        assert all(list(finding.extra)[-1] in other for finding in replayed.findings)


def test_a_skipped_step_uses_its_samples_up():
    replayed = replay(order(), walk(10, skipped=(2, 3)))
    assert replayed.is_exact
    assert [epoch.num_without_effect for epoch in replayed.epochs] == [16, 0]
    assert [epoch.num_once for epoch in replayed.epochs] == [NUM - 16, 24]
    assert replayed.total.count == NUM + 24


def test_steps_that_leave_a_gap():
    entries = walk(10)
    replayed = replay(order(), [*entries[:3], *entries[4:]])
    order_finding, gap = replayed.findings
    assert (order_finding.kind, order_finding.text) == ("order", "step 5 follows step 3 in the journal")
    assert (gap.step, gap.kind, list(gap.missing)) == (5, "gap", in_order(0, 24, 32))
    assert gap.text.startswith(
        "step 5 begins after 32 samples of the run, and 24 had been taken before it: nobody took 8 samples ("
    )
    assert replayed.epochs[0].num_missing == 8


def test_steps_that_overlap():
    first = walk(10)
    again = [replace(entry, step=entry.step + 2) for entry in first[2:]]
    replayed = replay(order(), [*first[:4], *again])
    assert [(finding.step, finding.kind) for finding in replayed.findings] == [(5, "overlap"), (6, "overlap")]
    assert [list(finding.extra) for finding in replayed.findings] == [
        in_order(0, 16, 24),
        in_order(0, 24, 32),
    ]
    assert replayed.findings[0].text.startswith(
        "step 5 begins after 16 samples of the run, and 32 had been taken before it: twice 8 samples ("
    )
    assert replayed.epochs[0].num_repeated == 16
    assert replayed.epochs[0].num_missing == 0


def test_a_journal_that_begins_late_and_a_step_that_goes_backwards():
    entries = walk(3)
    kinds = [finding.kind for finding in replay(order(), entries[1:]).findings]
    assert kinds == ["order", "gap"]
    assert "step 2 is the first in the journal" in replay(order(), entries[1:]).findings[0].text
    backwards = replace(entries[2], consumed_after=4, count=0, lanes=(0, 0, 0, 0))
    finding = only(replay(order(), [*entries[:2], backwards]))
    assert (finding.step, finding.kind) == (3, "order")
    assert "it does not go forward" in finding.text
