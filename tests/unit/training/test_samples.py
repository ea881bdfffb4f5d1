"""What is remembered of the steps: totals, the journal's part of a commit, what a new rank is told."""

import pytest

from eagleray.data.digests import LANE_MASK, LANES, Entry, Total
from eagleray.packaging import CheckpointStore
from eagleray.training.samples import Samples


def entry(step):
    return Entry(step, (step - 1) * 8, step * 8, 8, (LANE_MASK - 1, step, 0, 3), False, 2, 1)


def remembering(*steps):
    samples = Samples()
    for step in steps:
        samples.add(entry(step))
    return samples


def steps_of(segment):
    return [Entry.from_json(fields).step for fields in segment.entries]


def test_the_first_segment_starts_at_the_beginning():
    samples = remembering(1, 2, 3)
    segment = samples.segment(1, 3)
    assert (segment.parent, steps_of(segment)) == (None, [1, 2, 3])
    assert samples.state() == {"count": 24, "lanes": [LANE_MASK - 5, 6, 0, 9], "parent": None}


def test_only_what_a_checkpoint_holds_is_forgotten():
    samples = remembering(1, 2, 3, 4)
    samples.settle(1, 2)
    segment = samples.segment(1, 4)
    assert (segment.parent, steps_of(segment)) == ((1, 2), [3, 4])
    assert samples.state()["parent"] == [1, 2]
    assert samples.total == Total().plus(map(entry, (1, 2, 3, 4)))


def test_an_older_checkpoint_changes_nothing():
    samples = remembering(1, 2, 3)
    samples.settle(2, 2)
    samples.settle(1, 3)  # what a rank wrote that was rank 0 before
    assert (samples.parent, steps_of(samples.segment(2, 3))) == ((2, 2), [3])


def test_a_commit_that_failed_leaves_its_entries_to_the_next():
    samples = remembering(1, 2)
    assert steps_of(samples.segment(1, 2)) == [1, 2]  # never settled
    samples.add(entry(3))
    assert steps_of(samples.segment(1, 3)) == [1, 2, 3]


def test_a_new_rank_is_told_all_of_it():
    samples = remembering(1, 2, 3)
    samples.settle(1, 1)
    told = Samples()
    told.add(entry(9))
    told.load(samples.to_json())
    assert told.to_json() == samples.to_json()
    assert told.segment(1, 3) == samples.segment(1, 3)


@pytest.mark.parametrize("has_journal", [True, False])
def test_it_goes_on_from_a_checkpoint(tmp_path, has_journal):
    before = remembering(1, 2)
    state = {"samples": before.state()} if has_journal else {}
    checkpoint = CheckpointStore(tmp_path).commit(2, attempt=1, tensors={}, state=state)
    samples = remembering(1, 2, 3)
    samples.restart(checkpoint)
    assert samples.total == (before.total if has_journal else Total())
    assert (samples.parent, samples.segment(2, 2).entries) == ((1, 2), ())
    samples.restart(None)
    assert samples.state() == {"count": 0, "lanes": [0] * LANES, "parent": None}
