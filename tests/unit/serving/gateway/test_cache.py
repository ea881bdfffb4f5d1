"""Which answers are kept, for how long, and who waits for whose: without a loop."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eagleray.serving.gateway import cache
from eagleray.serving.gateway.cache import OVERHEAD_BYTES, ResponseCache, Shelf, wishes
from eagleray.serving.ingress.http import Response
from eagleray.serving.routes import ModelRoute, Routes
from support.serving import target

ROOM = 4 * (OVERHEAD_BYTES + 100)


class Asker:
    """A Waiter that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.is_over = False

    def take(self, kept: cache.Kept) -> None:
        self.told.append(kept.body)
        self.is_over = True

    def go_on(self) -> None:
        self.told.append("go on")


class Rig:
    """A cache of one version, whose steps are made when the test says so."""

    def __init__(self, **changes: Any) -> None:
        self.steps: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.cache = ResponseCache(lambda step, *arguments: self.steps.append((step, arguments)))
        self.target = target("iris", cache_bytes=ROOM, **changes)
        self.follow(self.target)

    def follow(self, *targets: Any) -> None:
        models = {found.name: ModelRoute(found.version, {}, {found.version: found}) for found in targets}
        self.cache.follow(Routes(1, models))

    @property
    def shelf(self) -> Shelf:
        found = self.cache.shelf(self.target)
        assert found is not None
        return found

    def keep(self, key: bytes, body: bytes = b"x" * 100) -> None:
        self.shelf.join(key, Asker()).keep(Response(body))

    def run(self) -> None:
        steps, self.steps = self.steps, []
        for step, arguments in steps:
            step(*arguments)

    @property
    def counted(self) -> dict[str, int]:
        return {result: number for (*_, result), number in self.cache.counts.items() if number}


def test_what_was_answered_is_answered_again() -> None:
    rig = Rig()
    assert rig.shelf.find(b"k") is None
    first = Response(b"body", media_type="x/y", headers={"vary": "accept-encoding"})
    rig.shelf.join(b"k", Asker()).keep(first)
    first.headers["x-ratelimit-remaining"] = "1"
    kept = rig.shelf.find(b"k")
    assert kept is not None
    assert (kept.body, kept.media_type) == (b"body", "x/y")
    assert kept.headers_for(cache.HIT) == {
        "vary": "accept-encoding", "cache-status": "eagleray; hit", "age": "0",
    }  # fmt: skip
    assert first.headers["cache-status"] == "eagleray; fwd=miss; stored"
    assert rig.counted == {"miss": 1, "hit": 1}


def test_the_least_recently_used_goes_first_and_all_is_counted() -> None:
    rig = Rig()
    for key in (b"1", b"2", b"3", b"4"):
        rig.keep(key)
    assert rig.shelf.num_bytes == ROOM
    assert rig.shelf.find(b"1")
    rig.keep(b"5")
    assert [key for key in (b"1", b"2", b"3", b"4", b"5") if rig.shelf.find(key)] == [b"1", b"3", b"4", b"5"]
    rig.keep(b"6", b"x" * (100 + OVERHEAD_BYTES))
    assert len(rig.shelf) == 3
    assert rig.shelf.num_bytes == rig.cache.sizes()["iris", "1"] <= ROOM
    rig.keep(b"6", b"")
    assert rig.shelf.num_bytes <= ROOM - 100


def test_what_is_larger_than_all_room_is_given_and_not_kept() -> None:
    rig = Rig()
    rig.keep(b"1")
    seat, other = rig.shelf.join(b"2", Asker()), Asker()
    rig.shelf.join(b"2", other)
    answer = Response(b"x" * ROOM)
    seat.keep(answer)
    rig.run()
    assert (other.told, answer.headers["cache-status"]) == ([answer.body], "eagleray; fwd=miss")
    assert rig.shelf.find(b"2") is None
    assert rig.shelf.find(b"1"), "nothing has gone for it"


def test_those_who_ask_the_same_wait_for_the_first() -> None:
    rig = Rig()
    askers = [Asker() for _ in range(4)]
    seats = [rig.shelf.join(b"k", asker) for asker in askers]
    assert [seat.is_leading for seat in seats] == [True, False, False, False]
    assert rig.shelf.join(b"other", Asker()).is_leading
    seats[2].leave()
    seats[0].keep(Response(b"answer"))
    for seat in seats:
        seat.leave()
    rig.run()
    assert [asker.told for asker in askers] == [[], [b"answer"], [], [b"answer"]]
    assert rig.counted == {"miss": 2, "shared": 2}


@pytest.mark.parametrize("is_late", [False, True])
def test_where_the_first_fails_the_next_goes_on(is_late: bool) -> None:
    """And where that leaves, too, before it is told: the one after it."""
    rig = Rig()
    askers = [Asker() for _ in range(4)]
    seats = [rig.shelf.join(b"k", asker) for asker in askers]
    seats[0].leave()
    if is_late:
        seats[1].leave()
    rig.run()
    assert askers[1 + is_late].told == ["go on"]
    assert seats[1 + is_late].is_leading
    seats[1 + is_late].keep(Response(b"answer"))
    rig.run()
    assert askers[3].told == [b"answer"]
    assert rig.shelf.find(b"k")


def test_where_all_fail_the_next_one_begins_anew() -> None:
    rig = Rig()
    seats = [rig.shelf.join(b"k", Asker()) for _ in range(3)]
    for seat in seats:
        seat.leave()
    assert rig.shelf.join(b"k", Asker()).is_leading
    assert len(rig.shelf) == 0


def test_who_wants_a_fresh_answer_takes_nobodys_and_leaves_its_own() -> None:
    rig = Rig()
    rig.keep(b"k", b"old")
    first = rig.shelf.join(b"other", Asker())
    seat = rig.shelf.alone(b"k", Asker())
    answer = Response(b"new")
    seat.keep(answer)
    seat.leave()
    assert answer.headers["cache-status"] == "eagleray; fwd=request; stored"
    kept = rig.shelf.find(b"k")
    assert kept is not None
    assert kept.body == b"new"
    assert first.is_leading


def test_a_version_that_goes_or_changes_takes_its_answers_along() -> None:
    rig = Rig()
    rig.keep(b"k")
    shelf, seat, asker = rig.shelf, rig.shelf.join(b"late", Asker()), Asker()
    rig.shelf.join(b"late", asker)
    newer = replace(rig.target, digest="1" * 64)
    rig.follow(newer)
    assert rig.cache.shelf(rig.target) is None
    assert (shelf.num_bytes, len(shelf)) == (0, 0)
    seat.keep(Response(b"of the old one"))
    rig.run()
    assert asker.told == [b"of the old one"], "who asked the old one has its answer"
    assert shelf.num_bytes == 0
    rig.target = newer
    assert rig.shelf.find(b"k") is None
    rig.keep(b"k")
    rig.follow()
    assert rig.cache.shelf(newer) is None
    rig.follow(newer)
    assert rig.shelf.find(b"k") is None
    assert rig.cache.sizes() == {("iris", "1"): 0}


def test_another_size_and_none() -> None:
    rig = Rig()
    for key in (b"1", b"2", b"3"):
        rig.keep(key)
    rig.follow(replace(rig.target, cache_bytes=ROOM // 2))
    assert [bool(rig.shelf.find(key)) for key in (b"1", b"2", b"3")] == [False, True, True]
    rig.follow(replace(rig.target, cache_bytes=0))
    assert rig.cache.shelf(rig.target) is None


def test_keys_tell_apart_what_is_answered_differently() -> None:
    body, iris, digits = b'{"inputs": []}', target("iris"), target("digits", 2)
    terms = [(body, "", ""), (body, "14", ""), (body, "", "gzip"), (body + b" ", "", ""), (b"14", "", "")]
    shelves = [
        Shelf(found, lambda _: None, lambda *_: None)
        for found in (iris, digits, replace(iris, version=2), replace(iris, digest="1" * 64))
    ]
    keys = {shelf.key(*each) for shelf in shelves for each in terms}
    assert len(keys) == 20
    assert shelves[0].key(memoryview(body), "", "") == shelves[0].key(bytearray(body), "", "")


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        *((None, (False, False)), ("", (False, False)), ("max-age=0", (False, False))),
        *(("no-cache", (True, False)), ("No-Store , max-age=3", (False, True))),
        *(("x,no-cache=y", (True, False)), ("no-cache, no-store", (True, True))),
    ],
)  # fmt: skip
def test_what_a_client_may_wish(header: str | None, wanted: tuple[bool, bool]) -> None:
    assert wishes(header) == wanted


def test_a_kept_answer_takes_no_more_memory_than_is_counted() -> None:
    import tracemalloc

    rig = Rig()
    shelf = rig.shelf
    shelf.resize(2**30)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            headers = {
                "inference-header-content-length": str(number),
                "content-encoding": "gzip",
                "vary": "x",
            }
            key = shelf.key(b"%d" % number, "", "")
            shelf.join(key, Asker()).keep(Response(b"%01000d" % number, headers=headers))
        assert tracemalloc.get_traced_memory()[0] - before <= shelf.num_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_has_one_end_and_the_room_is_kept(seed: int) -> None:
    """Joins, answers, failures and changes of size in any order: nobody is forgotten, or told twice."""
    draw = random.Random(seed)
    rig, askers, seats = Rig(), [], []
    shelf = rig.shelf
    for _ in range(300):
        step = draw.random()
        open_seats = [pair for pair in zip(seats, askers, strict=True) if not pair[1].is_over]
        if step < 0.5 or not open_seats:
            key = draw.choice([b"a", b"b", b"c", b"d", b"e", b"f"])
            if shelf.find(key) is None:
                asker = Asker()
                askers.append(asker)
                seats.append(shelf.join(key, asker))
        elif step < 0.9:
            seat, asker = draw.choice(open_seats)
            if seat.is_leading and step < 0.7:
                seat.keep(Response(b"x" * draw.randrange(200)))
            seat.leave()
            asker.is_over = True
        elif step < 0.95:
            shelf.resize(draw.randrange(ROOM))
        else:
            rig.run()
        assert 0 <= shelf.num_bytes == sum(kept.num_bytes for kept in shelf._kept.values())
        leading = [seat for seat in seats if seat.is_leading and seat._flight is not None]
        assert len(leading) == len(shelf._flights), "each question has one who asks"
    while open_seats := [pair for pair in zip(seats, askers, strict=True) if not pair[1].is_over]:
        rig.run()
        for seat, asker in open_seats:
            if seat.is_leading and not asker.is_over:
                seat.leave()
                asker.is_over = True
            assert seat.is_leading or seat._flight is not None or asker.is_over
    assert shelf._flights == {}
    assert all(len(asker.told) <= 1 for asker in askers)
