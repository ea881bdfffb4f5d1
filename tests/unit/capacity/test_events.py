"""The event log: from it alone one can tell who held what."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from eagleray.capacity import (
    Ask,
    AskNodes,
    Book,
    Event,
    Evict,
    Grant,
    Notice,
    Request,
    Statement,
    Wait,
    Withdraw,
)
from eagleray.capacity import events as log
from eagleray.errors import InputError
from unit.capacity.claimed import GPU

REQUEST = Request.run("r", "run gpt", GPU, minimum=1, wanted=3)
OPENED = Book().exchange(Statement(REQUEST), 5.0)
GRANT = Grant("r", {"b": 1, "a": 1}, "2 x (1 GPU, 1 CPU)")


def round_of(book: Book, *decisions, now_s: float = 6.0) -> tuple[Book, list[Event]]:
    after = book.carry_out(decisions, now_s)
    return after, log.of_round(book, decisions, after, now_s)


def test_a_grant():
    _, [event] = round_of(OPENED, GRANT)
    each = {"a": GPU, "b": GPU}
    classes = {"training_minimum": 1, "training_share": 1}
    first = ("grant", "r", "run gpt", "training_minimum")
    assert event == Event(6.0, *first, GRANT.reason, 2, each, each, 2, classes=classes)


def test_the_json_is_what_the_page_says():
    _, [event] = round_of(OPENED, GRANT)
    assert event.to_json() == {
        "schema": 1,
        "time_s": 6.0,
        "kind": "grant",
        "claim": "r",
        "holder": "run gpt",
        "class": "training_minimum",
        "reason": "2 x (1 GPU, 1 CPU)",
        "units": 2,
        "resources": {"a": {"CPU": 1, "GPU": 1}, "b": {"CPU": 1, "GPU": 1}},
        "held": {"a": {"CPU": 1, "GPU": 1}, "b": {"CPU": 1, "GPU": 1}},
        "size": 2,
        "deadline_s": None,
        "cause": None,
        "waits_for": [],
        "classes": {"training_minimum": 1, "training_share": 1},
    }


def test_every_kind_comes_back_from_its_json():
    book, found = OPENED, list(log.of_exchange(Book(), OPENED, 5.0))
    ask = AskNodes((Ask("r", GPU, {}, 1),))
    rounds = [
        [GRANT, Wait("r", 1, "held", ("x",), "busy"), ask],
        [Notice("r", {"b": 1}, 1, 16.0, "service s needs it", ("s",))],
        [Withdraw("r", "nothing needs it any more")],
        [Notice("r", {"b": 1}, 1, 16.0, "service s needs it", ("s",))],
        [Evict("r", {"b": 1}, 1, "not given back in time")],
    ]
    for decisions in rounds:
        book, events = round_of(book, *decisions)
        found += events
    for after in (book.ended("r", {"b": 1}, 7.0), book.ended("r", {"b": 1}, 7.0).close("r")):
        found += log.of_exchange(book, after, 7.0)
        book = after
    assert [(event.kind, event.units, event.size) for event in found] == [
        ("open", 0, 0),
        ("grant", 2, 2),
        ("wait", 1, 2),
        ("ask_nodes", 1, 2),
        ("notice", 1, 1),
        ("withdraw", 1, 2),
        ("notice", 1, 1),
        ("evict", 1, 2),
        ("return", 1, 1),
        ("close", 1, 0),
    ]
    assert found[4].rank == "training_share"
    assert (found[4].deadline_s, found[4].waits_for) == (16.0, ("s",))
    assert found[3].resources == {"": {"CPU": 1, "GPU": 1}}
    assert found[-2].reason == "as it was asked to"
    for event in found:
        assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


def test_what_runs_without_a_grant_is_taken_so_that_the_last_held_is_true():
    book, _ = round_of(OPENED, GRANT)
    moved = book.exchange(Statement(REQUEST, 1, {"a": 1}, {"a": 1, "c": 1}), 7.0)
    found = [(event.kind, event.resources, event.rank) for event in log.of_exchange(book, moved, 7.0)]
    assert found == [("return", {"b": GPU}, "training_share"), ("take", {"c": GPU}, "training_share")]
    *_, last = log.of_exchange(book, moved, 7.0)
    assert (last.held, last.size) == ({"a": GPU, "c": GPU}, 2)
    assert Event.from_json(json.loads(json.dumps(last.to_json()))) == last


def test_what_goes_on_is_told_once():
    wait, ask = Wait("r", 3, "held", ("x",), "busy"), AskNodes((Ask("r", GPU, {}, 3),))
    book, first = round_of(OPENED, ask, wait)
    _, second = round_of(book, ask, wait, now_s=7.0)
    _, third = round_of(book, Wait("r", 3, "yield", ("x",), "soon"), now_s=8.0)
    assert [[event.kind for event in events] for events in (first, second, third)] == [
        ["ask_nodes", "wait"],
        [],
        ["wait"],
    ]


def test_a_later_version_may_say_more():
    _, [event] = round_of(OPENED, GRANT)
    assert Event.from_json({**event.to_json(), "price": 3}) == event


def test_an_earlier_version_did_not_tell_the_classes():
    _, [event] = round_of(OPENED, GRANT)
    values = event.to_json()
    del values["classes"]
    assert Event.from_json(values) == replace(event, classes={})


def test_the_classes_are_those_of_what_is_held_after_it():
    book, _ = round_of(OPENED, GRANT)
    [returned] = log.of_exchange(book, book.ended("r", {"b": 1}, 7.0), 7.0)
    [closed] = log.of_exchange(book, book.close("r"), 7.0)
    assert (returned.classes, closed.classes) == ({"training_minimum": 1}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "a capacity event of schema 2; this version reads schema 1"),
        (
            {"kind": "gift"},
            "a capacity event of kind 'gift'; known: open, close, return, take, grant, notice",
        ),
        ({"class": None, "time_s": ...}, "a capacity event that lacks something"),
    ],
)
def test_what_is_no_event(change, message):
    _, [event] = round_of(OPENED, GRANT)
    values = {key: value for key, value in (event.to_json() | change).items() if value is not ...}
    with pytest.raises(InputError, match=message):
        Event.from_json(values)


def test_a_line_that_is_no_table():
    with pytest.raises(InputError, match="a capacity event of schema 7"):
        Event.from_json(7)  # pyright: ignore[reportArgumentType]
