"""Who held what, from the ledger's events; and the picture of it."""

import struct

import pytest

from eagleray.capacity.events import Event
from eagleray.evaluation.holdings import holdings, plot_holdings


def event(time_s, kind, claim, rank, held, *, holder=None, **values):
    by_node = {node: {"CPU": cpus} for node, cpus in held.items()}
    return Event(time_s, kind, claim, holder or claim, rank, held=by_node, size=len(held), **values)


EVENTS = [
    event(0.0, "open", "run", "training_minimum", {}),
    event(0.1, "grant", "run", "training_share", {"aaaaaaaa": 2.0, "bbbbbbbb": 2.0}),
    event(5.0, "open", "serve:digits", "serving_burst", {}, holder="digits"),
    event(5.0, "notice", "run", "training_share", {"aaaaaaaa": 2.0, "bbbbbbbb": 2.0},
          resources={"bbbbbbbb": {"CPU": 2.0}}),
    event(6.0, "return", "run", "training_share", {"aaaaaaaa": 2.0}),
    event(6.0, "grant", "serve:digits", "serving_burst", {"bbbbbbbb": 1.0}, holder="digits"),
    event(7.0, "wait", "serve:digits", "serving_burst", {"bbbbbbbb": 1.0}, holder="digits"),
    event(20.0, "close", "serve:digits", "serving_burst", {}, holder="digits"),
    event(21.0, "grant", "run", "training_share", {"aaaaaaaa": 2.0, "bbbbbbbb": 2.0}),
    event(30.0, "close", "run", "training_minimum", {}),
]  # fmt: skip


def test_curves_are_what_each_holder_has_from_each_event_on():
    digits, run = holdings(EVENTS)
    assert (digits.holder, digits.kind, run.kind) == ("digits", "serving", "training")
    assert [run.at(time) for time in (-1.0, 0.0, 0.1, 5.9, 6.0, 20.9, 21.0, 30.0, 99.0)] == [
        0, 0, 4, 4, 2, 2, 4, 0, 0,
    ]  # fmt: skip
    assert [run.at(6.0, node) for node in ("aaaaaaaa", "bbbbbbbb", "none")] == [2, 0, 0]
    assert [digits.at(time) for time in (5.0, 6.0, 19.9, 20.0)] == [0, 1, 1, 0]


def test_another_resource_and_holders_that_had_none_of_it():
    gpus = Event(1.0, "grant", "g", "job 1", "batch", held={"a": {"CPU": 1.0, "GPU": 2.0}})
    (only,) = holdings([*EVENTS, gpus], "GPU")
    assert (only.holder, only.kind, only.at(1.0)) == ("job 1", "batch", 2)


def test_the_claims_of_a_holder_are_added_up():
    events = [
        event(1.0, "grant", "one", "tuning", {"a": 1.0}, holder="search"),
        event(2.0, "grant", "two", "tuning", {"a": 1.0, "b": 1.0}, holder="search"),
        event(3.0, "close", "one", "tuning", {}, holder="search"),
    ]
    (search,) = holdings(events)
    assert [search.at(time) for time in (1.0, 2.0, 3.0)] == [1, 3, 2]
    assert search.at(2.0, "a") == 2


MANY = [
    event(float(number), "grant", f"c{number}", rank, {f"node-{number % 20}": 1.0})
    for number, rank in enumerate(
        ["serving_floor", "training_share", "tuning", "batch", "of a later version"] * 8
    )
]


@pytest.mark.parametrize("events", [[], EVENTS, MANY], ids=["none", "a yield", "many holders"])
def test_any_events_make_a_picture(tmp_path, events):
    path = tmp_path / "held.png"
    plot_holdings(events, path, title="who held what", totals={"bbbbbbbb": 2.0}, names={"bbbbbbbb": "node 2"})
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20]) == (1200,)


def test_a_later_begin_and_end_make_another_picture(tmp_path):
    pictures = set()
    for since_s, until_s in [(None, None), (5.5, 10.0)]:
        plot_holdings(EVENTS, tmp_path / "held.png", title="t", since_s=since_s, until_s=until_s)
        pictures.add((tmp_path / "held.png").read_bytes())
    assert len(pictures) == 2
