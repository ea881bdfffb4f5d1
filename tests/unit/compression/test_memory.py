"""What a compressor keeps, copied before a step and taken back after it; and the memory of messages."""

import pytest
import torch

from eagleray.compression.guard import Guard
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import COUNT, Memory
from eagleray.compression.messages import HEADER
from eagleray.compression.stats import NonFinite
from eagleray.compression.wire import Step, Wire
from support.ranks import wires

SHAPES = {"a": (5, 7), "b": (3,), "c": (40,)}


@pytest.fixture
def memory():
    memory = Memory(Layout(SHAPES.items(), world_size=2), torch.device("cpu"))
    for slot in ("residual", "momentum"):
        memory.flat(slot, "mean").normal_()
    memory.tensor("factors", "a", "same", (1, 7))[0].normal_()
    memory.tensor(COUNT, "a", "same", (1,))[0].fill_(3)
    return memory


def views(memory, slot):
    return {name: part.clone() for name, part in memory.layout.flat_views(memory.flats[slot][1]).items()}


def test_what_was_repaid_in_vain_is_owed_again(memory):
    memory.owe(lambda place: place.name == "a")
    assert memory.owed == {"b", "c"}
    before = views(memory, "residual")
    parts = [(place, 0) for place in memory.layout.places.values()]
    memory.repay(parts[:2], torch.ones(40), 1.0)
    assert memory.owed == {"c"}
    memory.repay(parts[2:], torch.zeros(40), 1.0)
    memory.repay(parts[2:], torch.full((40,), torch.nan), 1.0)
    assert memory.owed == {"c"}, "no gradient, or none that could be taken"
    assert not views(memory, "residual")["b"].any()
    memory.take_back()
    assert memory.owed == {"b", "c"}
    assert all(torch.equal(now, before[name]) for name, now in views(memory, "residual").items())
    memory.repay(parts, torch.ones(40, dtype=torch.float64), 1.0)
    memory.let_go(free=True)
    memory.take_back()
    assert memory.owed == set()


def test_what_was_kept_is_taken_back_and_nothing_else(memory):
    places = memory.layout.places
    before = {slot: views(memory, slot) for slot in ("residual", "momentum")}
    factors = memory.tensors["factors"][1]["a"].clone()
    memory.keep([places["a"]])
    assert memory.has_kept([places["a"]])
    assert not memory.has_kept([places["a"], places["c"]])
    for slot in before:
        memory.flat(slot, "mean").add_(1)
    memory.tensors["factors"][1]["a"].zero_()
    memory.keep([places["a"], places["c"]])  # a is kept as it was
    memory.flat("residual", "mean").add_(1)
    memory.tensor("factors", "a", "same", (5, 1))[0].fill_(9)
    memory.tensor("ranges", "c", "same", (2,))[0].fill_(9)
    memory.flat("late", "mean").fill_(9)
    memory.tensors[COUNT][1]["a"].fill_(4)
    memory.take_back()
    for slot, parts in before.items():
        now = views(memory, slot)
        assert torch.equal(now["a"], parts["a"])
        torch.testing.assert_close(now["c"], parts["c"] + 1, rtol=0, atol=1e-6)
        torch.testing.assert_close(now["b"], parts["b"] + (2 if slot == "residual" else 1), rtol=0, atol=1e-6)
    assert torch.equal(memory.tensors["factors"][1]["a"], factors)
    assert "ranges" not in memory.tensors
    late = views(memory, "late")
    assert not late["a"].any()
    assert late["b"].all()
    assert memory.tensors[COUNT][1]["a"] == 4, "steps are counted, taken or not"


class Played:
    """As much of a job as the guard looks at."""

    def __init__(self, place, number, *, is_last, loss_scale=1.0):
        self.bucket, self.is_last = Bucket.packed([place]), is_last
        self.step = Step(number, 0, loss_scale)


@pytest.mark.parametrize(("loss_scale", "is_taken_back"), [(1.0, False), (8.0, True)])
def test_what_all_ranks_have_alike_stays_so_whenever_they_hear_of_a_step_that_is_not_finite(
    loss_scale, is_taken_back
):
    """Bucket a is not finite; one rank hears of it before it begins bucket c, and one only afterwards."""
    found = []
    for hears_early in (True, False):
        memory = Memory(Layout(SHAPES.items(), world_size=2), torch.device("cpu"))
        memory.tensor("factors", "c", "same", (1, 4))[0].fill_(1)
        memory.flat("shared", "same").fill_(1)
        memory.flat("residual", "mean").fill_(1)
        guard, places = Guard(memory, rank=1), memory.layout.places
        first = Played(places["a"], 7, is_last=False, loss_scale=loss_scale)
        second = Played(places["c"], 7, is_last=True, loss_scale=loss_scale)
        guard.begin(first)
        if hears_early:
            guard.conclude(first, 0)
        guard.begin(second)
        if not hears_early:
            guard.conclude(first, 0)
        memory.tensors["factors"][1]["c"].fill_(2)
        memory.tensor("ranges", "c", "same", (2,))[0].fill_(2)
        memory.flat("shared", "same").fill_(2)
        memory.flat("residual", "mean").fill_(2)
        guard.conclude(second, -1)
        assert guard.non_finite.total == 1
        assert views(memory, "residual")["c"].eq(1).all() == (hears_early or is_taken_back)
        shared = {slot: one["c"] for slot, (rule, one) in memory.tensors.items() if rule == "same"}
        found.append(shared | {"shared": views(memory, "shared")["c"]})
    early, late = found
    assert early.keys() == late.keys()
    assert all(torch.equal(early[slot], late[slot]) for slot in early)
    assert early["factors"].eq(1 if is_taken_back else 2).all()
    assert ("ranges" in early) != is_taken_back


def test_a_step_that_is_taken_stays(memory):
    memory.keep(memory.layout.places.values())
    memory.flat("residual", "mean").fill_(5)
    memory.let_go(free=False)
    memory.take_back()
    assert (memory.flat("residual", "mean") == 5).all()
    assert not memory.has_kept(memory.layout.places.values())


def test_who_keeps_nothing_has_nothing_to_lose():
    memory = Memory(Layout(SHAPES.items(), world_size=2), torch.device("cpu"))
    assert memory.has_kept(memory.layout.places.values())


def test_steps_that_were_not_finite_are_counted():
    told = NonFinite().then(None, is_whole=False).then("a", is_whole=False).then("b", is_whole=True)
    assert told == NonFinite(2, 2, "b", 1)
    assert told.then(None, is_whole=True) == NonFinite(0, 2, "b", 1)


def test_behind_each_message_there_is_room_for_a_longer_one():
    wire: Wire = wires(2)[0]
    assert wire.message(10).window.numel() >= HEADER + 10
    wire.make_room(100_000)
    wire.make_room(10)
    single = wire.message(10)
    buffer, several = wire.messages([30, 0, 5000])
    assert buffer.numel() % 64 == 0
    for message in (single, *several):
        assert message.window.data_ptr() == message.data.data_ptr()
        assert message.window.numel() >= message.data.numel() + 400_000
        assert message.data.data_ptr() % 64 == 0
        assert not message.data.any()
    for message, size in zip(several, (30, 0, 5000), strict=True):
        assert message.body.numel() == size
        assert buffer.data_ptr() + message.at == message.data.data_ptr() + HEADER
