import pytest

from eagleray.inference import waiting
from eagleray.inference.waiting import FairQueue, QueueClosed, QueueFull


def filled(*entries, max_waiting=100):
    queue = FairQueue(max_waiting)
    for key, num_tokens in entries:
        queue.put(key, num_tokens, key)
    return queue


def all_of(queue):
    items = []
    while (item := queue.take()) is not None:
        items.append(item)
    return "".join(items)


@pytest.mark.parametrize(
    ("entries", "order"),
    [
        ([("a", 5), ("a", 5), ("b", 5), ("b", 5), ("c", 5)], "abcab"),
        ([("b", 5), ("a", 5), ("a", 5)], "baa"),
        ([("a", 9), ("a", 9), ("a", 9), *[("b", 3)] * 6], "abbbabbba"),
        ([], ""),
    ],
)
def test_keys_take_turns_by_their_tokens(entries, order):
    assert all_of(filled(*entries)) == order


def test_a_key_that_comes_late_has_saved_nothing_up():
    queue = filled(*[("a", 5)] * 9)
    assert [queue.take() for _ in range(6)] == ["a"] * 6
    for _ in range(3):
        queue.put("b", 5, "b")
    assert all_of(queue) == "bababa"


def test_a_key_that_comes_back_still_owes():
    queue = filled(("a", 100), ("b", 10), ("b", 10))
    assert queue.take() == "a"
    queue.put("a", 10, "a")
    assert all_of(queue) == "bba"


def test_what_is_given_back_counts():
    queue = filled(("a", 100), ("a", 100), *[("b", 10)] * 3)
    assert queue.take() == "a"
    queue.give_back("a", 95)
    assert all_of(queue) == "babb"


def test_what_is_put_back_is_the_first_of_its_key_and_needs_no_room():
    queue = filled(("a", 50), ("a", 10), ("b", 10), max_waiting=3)
    assert queue.next_key == "a"
    assert queue.take() == "a"
    queue.put("b", 10, "b")
    queue.give_back("a", 45)
    queue.put_back("a", 45, "A")
    assert (queue.next_key, len(queue)) == ("b", 4)
    assert all_of(queue) == "bAba"
    assert queue.next_key is None


def test_it_is_bounded_and_who_leaves_makes_room():
    queue, item = filled(("a", 1), max_waiting=2), object()
    queue.put("b", 1, item)
    with pytest.raises(QueueFull, match="2 requests for text wait already"):
        queue.put("c", 1, "c")
    assert queue.remove("b", item)
    assert not queue.remove("b", item)
    assert not queue.remove("nobody", item)
    queue.put("c", 1, "c")
    assert len(queue) == 2
    assert all_of(queue) == "ac"
    assert len(queue) == 0


def test_closed_it_gives_back_what_waits_and_takes_no_more():
    queue = filled(("a", 1), ("b", 1))
    assert sorted(queue.close()) == ["a", "b"]
    assert queue.close() == []
    assert queue.take() is None
    with pytest.raises(QueueClosed):
        queue.put("a", 1, "a")


def test_it_does_not_remember_every_key(monkeypatch):
    monkeypatch.setattr(waiting, "_MAX_KEYS", 10)
    queue = FairQueue(5)
    for number in range(100):
        queue.put(str(number), 1, number)
        assert queue.take() == number
        assert len(queue._had) <= 11
