"""The policy as tables: claims and nodes in, decisions out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eagleray.capacity import (
    AskNodes,
    ClaimClass,
    Evict,
    Expire,
    Facts,
    Grant,
    Notice,
    Settings,
    Suspend,
    Wait,
    Withdraw,
)
from eagleray.capacity.placement import Capacity, NodeCapacity
from unit.capacity.claimed import CPU, GPU, NOW_S, decided, given, job, node, only, run, search, service

ONE, TWO, THREE = [node("a")], [node("a"), node("b")], [node("a"), node("b"), node("c")]


def notice(*takers: str, deadline_s: float = NOW_S + 5) -> Notice:
    return Notice("r", {"b": 1}, 1, deadline_s, "needed by service s", takers)


def test_the_classes_in_their_order():
    assert [rank.words for rank in sorted(ClaimClass, reverse=True)] == [
        "serving floor",
        "serving burst",
        "training minimum",
        "tuning",
        "training share",
        "batch",
    ]


def test_nothing_to_decide():
    assert decided([], []) == decided(THREE, []) == decided(ONE, [run(held={"a": 1})]) == []


@pytest.mark.parametrize(
    ("nodes", "claims", "grants"),
    [
        (THREE, [run(wanted=8)], {"r": {"a": 1, "b": 1, "c": 1}}),  # idle capacity is lent down
        (THREE, [run(minimum=4, wanted=4)], {}),  # a gang gets its minimum at once, or nothing
        (THREE, [run("1", minimum=2, wanted=2), run("2")], {"1": {"a": 1, "b": 1}, "2": {"c": 1}}),
        (ONE, [run(), service()], {"s": {"a": 1}}),  # the higher class first
        (ONE, [run("old", opened_s=1), run("new", opened_s=2)], {"old": {"a": 1}}),  # who came first
        (
            [node(name) for name in "abcde"],
            [run("1", wanted=9), run("2", wanted=9, opened_s=1)],
            {"1": {"a": 1, "c": 1, "e": 1}, "2": {"b": 1, "d": 1}},  # shares in turns, after both minima
        ),
        ([node("a", 2), node("b", 2)], [run(bundle={"CPU": 3})], {}),  # 4 CPU in all, 3 on none
        ([node("a", 4), node("b", 2)], [run(bundle={"CPU": 2})], {"r": {"b": 1}}),  # a large node stays whole
        ([node("a", 1, 1), node("b", 4)], [job()], {"j": {"b": 1}}),  # no CPU of a GPU's node is wasted
        ([node("a", 2, 1)], [service(bundle={"CPU": 1, "GPU": 0.5}, wanted=2)], {"s": {"a": 2}}),
        (
            [node("a", other=CPU), node("b")],
            [run(wanted=2)],
            {"r": {"b": 1}},
        ),  # without a claim, and subtracted
        ([node("a", is_draining=True), node("b")], [run(wanted=2)], {"r": {"b": 1}}),
        ([node("a", labels={"pool": "x"}), node("b")], [run(label_selector={"pool": "!x"})], {"r": {"b": 1}}),
        (TWO, [search(wanted=5)], {"t": {"a": 1, "b": 1}}),
        (TWO, [job(units=2), run(minimum=1)], {"r": {"a": 1}}),
        (ONE, [run(held={"gone": 1})], {"r": {"a": 1}}),  # what its node took along does not count
    ],
)
def test_grants(nodes, claims, grants):
    assert given(decided(nodes, claims), Grant) == grants


@pytest.mark.parametrize(
    ("claims", "notices", "suspensions"),
    [
        ([run(wanted=3, held={"a": 1, "b": 1, "c": 1}), service(wanted=2)], {"r": {"a": 1, "b": 1}}, {}),
        (
            [run(wanted=3, held={"a": 1, "b": 1, "c": 1}), service(wanted=3)],
            {},
            {"r": {"a": 1, "b": 1, "c": 1}},
        ),
        (
            [run(minimum=3, wanted=3, held={"a": 1, "b": 1, "c": 1}), service()],
            {},
            {"r": {"a": 1, "b": 1, "c": 1}},
        ),
        (
            [run(minimum=3, wanted=3, held={"a": 1, "b": 1, "c": 1}), run("2")],
            {},
            {},
        ),  # equals keep what they have
        ([search(held={"a": 1, "b": 1, "c": 1}, wanted=3), run("r", 2, 3)], {"t": {"a": 1, "b": 1}}, {}),
        (
            [service(held={"a": 1, "b": 1, "c": 1}, wanted=3), service("2")],
            {"s": {"a": 1}},
            {},
        ),  # burst to floor
        ([service(held={"a": 1, "b": 1, "c": 1}, floor=3, wanted=3), service("2")], {}, {}),  # floors never
        ([job(units=3, held={"a": 1, "b": 1, "c": 1}), service()], {}, {}),  # a plain job runs to its end
        (
            [job(units=3, held={"a": 1, "b": 1, "c": 1}, is_yieldable=True), service()],
            {},
            {"j": {"a": 1, "b": 1, "c": 1}},
        ),
        ([run(wanted=3, held={"a": 1, "b": 1}), search("t", 2, held={"c": 1})], {"r": {"a": 1}}, {}),
    ],
)
def test_reclaims(claims, notices, suspensions):
    found = decided(THREE, claims)
    assert (given(found, Notice), given(found, Suspend)) == (notices, suspensions)
    assert only(Grant, found) == []


def test_a_notice_says_all_that_its_holder_needs():
    found = decided(TWO, [run(wanted=2, held={"a": 1, "b": 1}, yield_s=7), service()])
    assert found == [
        Notice("r", {"a": 1}, 1, NOW_S + 7, "needed by service s (serving floor)", ("s",)),
        Wait("s", 1, "yield", ("r",), "waits for run r to give back what it needs"),
    ]


def test_all_that_a_suspension_frees_can_be_planned_with():
    claims = [run(minimum=3, wanted=3, held={"a": 1, "b": 1, "c": 1}), service(), run("2", 2, 2, opened_s=1)]
    found = decided(THREE, claims)
    assert {wait.claim: wait.cause for wait in only(Wait, found)} == {"s": "yield", "2": "yield"}


BUSY, FRESH = Facts(since_commit_s=50), Facts(since_commit_s=1)


@pytest.mark.parametrize(
    ("first", "second", "victim"),
    [
        (run("1", 1, 2, facts=BUSY), run("2", 1, 2, facts=FRESH), "2"),
        (run("1", 1, 2, facts=FRESH), run("2", 1, 2, facts=BUSY), "1"),
        (run("1", 1, 2, facts=Facts(1, 0.9, 1)), run("2", 1, 2, facts=Facts(1, 0.1, 1)), "2"),  # nearly done
        (run("1", 1, 2, facts=Facts(1, 0.5, 30)), run("2", 1, 2, facts=Facts(1, 0.5, 1)), "2"),
        (run("1", 1, 2, opened_s=1), run("2", 1, 2, opened_s=2), "2"),  # all the same: who came last
        (run("1", 1, 2, facts=FRESH), search("2", 2, facts=BUSY), "1"),  # the lower class, whatever it loses
        (run("1", 2, 2, facts=FRESH), run("2", 1, 2, facts=BUSY), "2"),  # a share before a minimum
        (run("1", 1, 2, facts=BUSY, used={"a": 1}), run("2", 1, 2, facts=FRESH), "1"),  # b does not run yet
    ],
)
def test_the_victim_loses_least(first, second, victim):
    nodes = [node(name) for name in "abcd"]
    first, second = (
        replace(claim, held=held, used=claim.used or held)
        for claim, held in ((first, {"a": 1, "b": 1}), (second, {"c": 1, "d": 1}))
    )
    claims = [first, second, service()]
    assert list(given(decided(nodes, claims), Notice)) == [victim]


def test_two_claims_that_need_room_stop_one_run_and_not_two():
    """One of them can only be helped by the run that loses more; then that gives the other unit, too."""
    nodes = [node("a", labels={"pool": "x"}), *(node(name) for name in "bcdef")]
    claims = [
        run("1", 1, 3, held={"a": 1, "b": 1, "c": 1}, facts=BUSY),
        run("2", 1, 3, held={"d": 1, "e": 1, "f": 1}, facts=FRESH),
        service("x", label_selector={"pool": "x"}),
        service("y", opened_s=1),
    ]
    [sent] = only(Notice, decided(nodes, claims))
    assert (sent.claim, sent.new_size, sent.wanted_by) == ("1", 1, ("x", "y"))


def test_all_that_is_taken_is_on_the_node_where_it_is_needed():
    """2 CPU on one node: one unit of each of two runs there, and none elsewhere."""
    nodes = [node("a", 2), node("b", 2)]
    runs = [run("1", 1, 2, held={"a": 1, "b": 1}), run("2", 1, 2, held={"a": 1, "b": 1})]
    assert given(decided(nodes, [*runs, service(bundle={"CPU": 2})]), Notice) == {
        "2": {"a": 1},
        "1": {"a": 1},
    }


def test_what_turns_out_not_to_be_needed_is_not_taken():
    """The cheaper run's CPU comes first; but whoever has the GPU gives a CPU with it."""
    nodes = [node("a", 2, 1), node("b"), node("c", 1, 1)]
    cheap = run("1", 1, 2, held={"a": 1, "b": 1}, facts=FRESH)
    dear = run("2", 1, 2, bundle=GPU, held={"a": 1, "c": 1}, facts=BUSY)
    pinned = service(bundle=GPU, label_selector={"pool": "x"})
    nodes[0] = replace(nodes[0], labels={"pool": "x"})
    assert given(decided(nodes, [cheap, dear, pinned]), Notice) == {"2": {"a": 1}}


def test_nothing_is_taken_that_does_not_help():
    """The only room for a GPU is behind a job; the run on its CPUs is left alone."""
    nodes = [node("a", 2, 1)]
    claims = [job(bundle=GPU, held={"a": 1}), run(held={"a": 1}), service(bundle=GPU)]
    found = decided(nodes, claims)
    assert only(Notice, found) == only(Suspend, found) == []
    assert only(Wait, found)[0].cause == "held"


def test_what_is_being_given_back_is_not_asked_for_twice():
    leaving = run(wanted=3, held={"a": 1, "b": 1}, notice=notice("s"), keep={"a": 1})
    other = run("2", 1, 2, held={"c": 1})
    found = decided(THREE, [leaving, other, service()])
    assert [type(decision) for decision in found] == [Wait, Wait]
    assert found[0].claim == "2", "its share waits; that of the run which gives back is not spoken of"
    assert found[1].waits_for == ("r",)


def test_room_that_a_higher_claim_waits_for_is_not_granted_meanwhile():
    """One of two nodes is free, the other comes: the gang of two has both, the search has neither."""
    leaving = run(wanted=3, held={"b": 1}, notice=notice("s"), keep={}, minimum=1)
    found = decided(TWO, [leaving, run("2", 2, 2), search(wanted=2)])
    assert given(found, Grant) == {}
    assert {wait.claim: wait.cause for wait in only(Wait, found)} == {"2": "yield", "t": "held"}


def test_what_cannot_be_helped_keeps_room_from_those_who_would_not_give_it_back():
    """A gang of two waits for a job. Another job may not take the free node; a search gives it back."""
    claims = [job("long", held={"a": 1}), run(minimum=2, wanted=2), job("next"), search(wanted=1)]
    assert given(decided(TWO, claims), Grant) == {"t": {"b": 1}}
    assert given(decided(TWO, claims[:3]), Grant) == {}
    assert given(decided(TWO, [claims[0], claims[2]]), Grant) == {"next": {"b": 1}}


def test_small_claims_overtake_an_equal_one_only_until_it_has_waited_long():
    claims = [run("now", held={"a": 1}), run("big", 2, 2, opened_s=1), run("small", opened_s=2)]
    assert given(decided(TWO, claims), Grant) == {"small": {"b": 1}}
    claims[1] = replace(claims[1], waiting_s=NOW_S - 61)
    assert given(decided(TWO, claims), Grant) == {}


@pytest.mark.parametrize("size", [1, 2])
def test_what_is_kept_for_one_does_not_move_when_others_come_and_go(size):
    """The first search waits for the run to end. Were its place to move when the run grows, the second would
    have the run shrink, find the place kept again, see the run grow, and so on for ever.
    """
    nodes = [node("a", 2), node("b", 2, 1)]
    claims = [
        job(bundle={"CPU": 2}, held={"a": 1}),
        search("1", bundle={"CPU": 2}, waiting_s=NOW_S - 61),
        search("2", bundle=GPU, opened_s=1),
        run(wanted=2, held={"b": size}),
    ]
    assert only(Notice, decided(nodes, claims)) == []


def test_what_is_kept_stays_where_it_is_from_round_to_round():
    nodes = [node("a", 2), node("b", 2)]
    claims = [job("1", held={"a": 1}), job("2", held={"b": 1}), run(bundle={"CPU": 2})]
    [wait] = only(Wait, decided(nodes, claims))
    assert wait.kept_on == ("a",)
    claims[2] = replace(claims[2], wait=replace(wait, kept_on=("b",)))
    assert only(Wait, decided(nodes, claims))[0].kept_on == ("b",)
    assert only(Wait, decided([nodes[0]], claims))[0].kept_on == ("a",), "that node has gone"


def test_two_broken_gangs_do_not_wait_for_each_other():
    """Each has one of the two units it needs, and the nodes for the rest died: the later one gives way."""
    claims = [run("1", 2, 2, held={"a": 1}), run("2", 2, 2, held={"b": 1}, opened_s=1)]
    assert given(decided(TWO, claims), Suspend) == {"2": {"b": 1}}


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({}, None),
        ({"noticed_s": NOW_S - 9}, "cool_down"),  # it gave back
        ({"noticed_s": NOW_S - 11}, None),
        ({"granted_s": NOW_S - 4}, "cool_down"),  # it grew
        ({"granted_s": NOW_S - 6}, None),
    ],
)
def test_cool_down(state, cause):
    found = decided(TWO, [run(wanted=2, held={"a": 1}, **state)])
    assert [wait.cause for wait in only(Wait, found)] == ([cause] if cause else [])
    assert bool(only(Grant, found)) is (cause is None)


def test_a_suspended_run_starts_again_after_the_cool_down_and_serving_needs_none():
    assert only(Grant, decided(ONE, [run(noticed_s=NOW_S - 9)])) == []
    assert given(decided(ONE, [run(noticed_s=NOW_S - 11)]), Grant) == {"r": {"a": 1}}
    assert given(decided(TWO, [service(wanted=2, noticed_s=NOW_S - 1)]), Grant) == {"s": {"a": 1, "b": 1}}
    lost_a_node = run(minimum=2, wanted=2, held={"a": 1}, noticed_s=NOW_S - 1)
    assert given(decided(TWO, [lost_a_node]), Grant) == {"r": {"b": 1}}, "below its minimum it does not wait"


def test_a_deadline_passes():
    late = run(wanted=2, held={"a": 1, "b": 1}, notice=notice("s", deadline_s=NOW_S), keep={"a": 1})
    claims = [late, service()]
    [evict] = only(Evict, decided(TWO, claims))
    assert evict == Evict("r", {"b": 1}, 1, "not given back in time (needed by service s)")
    claims[0] = replace(late, evicted_s=NOW_S - 4)
    assert only(Evict, decided(TWO, claims)) == []
    claims[0] = replace(late, evicted_s=NOW_S - 5)
    assert only(Evict, decided(TWO, claims)) == [evict], "again, if it is still there"


def test_a_notice_is_withdrawn_when_nothing_needs_it_any_more():
    leaving = run(wanted=2, held={"a": 1, "b": 1}, notice=notice("s"), keep={"a": 1})
    assert only(Withdraw, decided(TWO, [leaving, service()])) == []
    [withdraw] = decided(TWO, [leaving])
    assert withdraw == Withdraw("r", "nothing needs it any more")
    assert only(Withdraw, decided(TWO, [replace(leaving, evicted_s=NOW_S - 4)])) == [], "it is being ended"
    hangs = replace(leaving, evicted_s=NOW_S - 5, notice=notice("s", deadline_s=NOW_S - 5))
    assert decided(TWO, [hangs]) == [withdraw], "it has no end, and need not have one any more"
    free = [*TWO, node("c")]
    assert given(found := decided(free, [leaving, service()]), Grant) == {"s": {"c": 1}}
    assert len(only(Withdraw, found)) == 1, "a node has come meanwhile"
    again = replace(leaving, notice=None, keep={}, withdrawn_s=NOW_S - 1, noticed_s=NOW_S - 1)
    assert only(Notice, decided(TWO, [again, service()])) == []
    again = replace(again, withdrawn_s=NOW_S - 2)
    assert len(only(Notice, decided(TWO, [again, service()]))) == 1


def test_of_two_notices_for_one_need_one_is_withdrawn():
    both = [node("a"), node("b", 2)]
    first = run(wanted=2, held={"a": 1, "b": 1}, notice=notice("s"), keep={"a": 1})
    second = search("t", 1, held={"b": 1}, notice=replace(notice("s"), claim="t"), keep={})
    assert [d.claim for d in only(Withdraw, decided(both, [first, second, service()]))] == ["r"]


def test_what_is_to_give_back_gets_nothing_in_the_same_round():
    pools = [node("a"), node("b", labels={"pool": "x"}), node("c")]
    pinned = service(label_selector={"pool": "x"})
    found = decided(pools, [run(wanted=3, held={"a": 1, "b": 1}), pinned])
    assert (given(found, Notice), given(found, Grant)) == ({"r": {"b": 1}}, {})


def test_a_notice_that_would_leave_too_little_by_now_is_withdrawn():
    """It was to go on with two, and the node of one of these has died."""
    leaving = run(minimum=2, wanted=3, held={"b": 1, "a": 1}, notice=notice("s"), keep={"a": 1, "c": 1})
    assert [d.reason for d in only(Withdraw, decided(TWO, [leaving, service()]))] == [
        "what it would keep is less than its minimum by now"
    ]


def test_a_draining_node_is_left_for_another():
    nodes = [node("a", is_draining=True, leaves_s=NOW_S + 30), node("b")]
    found = decided(nodes, [run(held={"a": 1})])
    assert found == [
        Grant("r", {"b": 1}, "1 x (1 CPU): 1 training minimum"),
        Notice("r", {"a": 1}, 1, NOW_S + 30, "node a will go"),
    ]
    assert given(decided(nodes[:1], [run(held={"a": 1})]), Suspend) == {"r": {"a": 1}}
    assert decided(nodes, [job(held={"a": 1})]) == [], "a plain job cannot move"


def test_a_place_that_something_without_a_claim_has_taken_is_given_up():
    started = {"held": {"a": 1}, "used": {}, "granted_s": NOW_S - 21}
    taken = [node("a", other=CPU), node("b")]
    assert given(decided(taken, [service(**started)]), Notice) == {"s": {"a": 1}}
    assert decided(taken, [service(**{**started, "granted_s": NOW_S - 19})]) == [], "it may still be starting"
    assert decided([node("a")], [service(**started)]) == [], "slow, but nothing is in its way"


def test_a_holder_that_is_silent():
    silent = run(wanted=1, held={"a": 1}, renewed_s=NOW_S - 16)
    found = decided(ONE, [silent, service()])
    assert only(Expire, found) == [Expire("r", "run r has not been heard of for 15 s")]
    assert only(Grant, found) == [], "its processes may still run; the next look at the node tells"
    assert decided(ONE, [replace(silent, renewed_s=NOW_S - 14)]) == []


TYPES = [
    NodeCapacity("cpu", {"CPU": 2}, {"pool": "cpu"}, 2),
    NodeCapacity("gpu", {"CPU": 2, "GPU": 1}, {"pool": "gpu"}, 2),
]
WAITED = {"waiting_s": NOW_S - 2}


@pytest.mark.parametrize(
    ("claims", "counts"),
    [
        ([service(wanted=2, **WAITED)], {"s": 2}),
        ([service(wanted=2)], {"s": 2}),  # no node that is there could ever hold it: no use to wait
        ([service(bundle=GPU, wanted=5, **WAITED)], {"s": 2}),  # one for each GPU there could be
        ([service(wanted=20, **WAITED)], {"s": 6}),  # three nodes in all, by the cluster's limit
        ([service(bundle={"CPU": 3}, **WAITED)], {}),
        ([run(minimum=7, wanted=7, **WAITED)], {}),  # a gang of which some would never start
        ([run(minimum=6, wanted=7, **WAITED)], {"r": 6}),
        ([run(minimum=1, wanted=5, budget=3, **WAITED)], {"r": 3}),
        ([run(minimum=1, wanted=5, budget=0, **WAITED)], {}),
        ([service(label_selector={"pool": "gpu"}, wanted=9, **WAITED)], {"s": 4}),
        ([run(minimum=1, wanted=9, **WAITED), service(wanted=5, **WAITED)], {"s": 5, "r": 1}),
    ],
)
def test_nodes_are_asked_for(claims, counts):
    asks = only(AskNodes, decided([], claims, Capacity(TYPES, 3)))
    assert {ask.claim: ask.count for found in asks for ask in found.asks} == counts
    assert only(AskNodes, decided([], claims)) == [], "nothing can be started"


def test_an_ask_says_for_how_many_units_nodes_are_missing():
    gpu = replace(node("a", 2, 1), node_type="gpu")
    [asked] = only(AskNodes, decided([gpu], [run(minimum=2, wanted=2, bundle=GPU)], Capacity(TYPES, 9)))
    assert [(ask.count, ask.num_new) for ask in asked.asks] == [(2, 1)]
    [asked] = only(
        AskNodes, decided([gpu], [run(minimum=2, wanted=2, bundle=GPU)], Capacity([], None, False))
    )
    assert [(ask.count, ask.num_new) for ask in asked.asks] == [(2, 1)], "what cannot be seen may offer it"


def test_a_node_that_is_full_for_a_moment_is_no_reason_to_ask_at_once():
    full = replace(node("a", 2), node_type="cpu", other={"CPU": 2})
    assert only(AskNodes, decided([full], [service()], Capacity(TYPES, 3))) == []
    assert len(only(AskNodes, decided([full], [service(**WAITED)], Capacity(TYPES, 3)))) == 1


def test_nodes_that_are_there_count():
    there = [replace(node(name, 2, 1), node_type="gpu", other=GPU) for name in "ab"]
    claims = [service(bundle=GPU, **WAITED)]
    assert only(AskNodes, decided(there, claims, Capacity(TYPES, 3))) == []
    assert len(only(AskNodes, decided(there[:1], claims, Capacity(TYPES, 3)))) == 1
    unknown = Capacity([], is_complete=False)
    assert len(only(AskNodes, decided(there, claims, unknown))) == 1, "what cannot be seen may offer it"


def test_no_node_is_asked_for_where_others_give_back():
    claims = [run(wanted=2, held={"a": 1, "b": 1}), service(**WAITED)]
    assert only(AskNodes, decided(TWO, claims, Capacity(TYPES, 3))) == []
    claims[0] = replace(claims[0], notice=notice("s"), keep={"a": 1})
    found = decided(TWO, [*claims, service("2", **WAITED)], Capacity(TYPES, 3))
    assert only(AskNodes, found) == []
    assert {wait.cause for wait in only(Wait, found)} == {"yield"}


def test_a_budget_limits_nodes_that_cost_and_not_those_that_are_there_anyway():
    bought = [node(name, is_on_demand=True) for name in "ab"]
    found = decided(bought, [run(wanted=4, budget=1)])
    assert given(found, Grant) == {"r": {"a": 1}}
    assert [wait.cause for wait in only(Wait, found)] == ["budget"]
    assert [wait.cause for wait in only(Wait, decided([], [run(minimum=2, wanted=2, budget=1)]))] == [
        "budget"
    ]
    fixed = [node("c"), node("d")]
    assert given(decided([*bought, *fixed], [run(wanted=4, budget=1)]), Grant) == {
        "r": {"a": 1, "c": 1, "d": 1}
    }


@pytest.mark.parametrize(
    ("nodes", "claims", "cause", "reason"),
    [
        ([], [run()], "labels", "there is no node"),
        (ONE, [run(label_selector={"pool": "x"})], "labels", "no node has pool=x"),
        (
            TWO,
            [run(bundle={"CPU": 2})],
            "size",
            "no room for 2 CPU on the nodes that there are (2), even empty ones",
        ),
        (
            TWO,
            [run(minimum=3, wanted=3)],
            "size",
            "no room for 3 x (1 CPU) on the nodes that there are (2), even empty ones",
        ),
        ([node("a", other=CPU)], [run()], "unclaimed", "what runs without a claim leaves no room for 1 CPU"),
        (
            ONE,
            [run("1", held={"a": 1}), run("2")],
            "held",
            "what it needs is held by run 1, and may not be taken from there now",
        ),
        (
            [node("a", 2), node("b", 2)],
            [job("1", held={"a": 1}), job("2", held={"b": 1}), run(bundle={"CPU": 2})],
            "fragments",
            "2 CPU is free in all, but not on one node, where a unit has to fit",
        ),
        (ONE, [run(wanted=2, held={"a": 1})], "held", "it has all that there is"),
        (
            ONE,
            [run("silent", held={"a": 1}, renewed_s=NOW_S - 16), run()],
            "held",
            "what it needs was held by a claim that ends just now",
        ),
        (
            TWO,
            [job(held={"a": 1}), run(minimum=2, wanted=2), job("2")],
            "held",
            "room for 1 CPU is free, and kept for claims that come first",
        ),
    ],
)
def test_why_a_claim_waits(nodes, claims, cause, reason):
    [found] = [wait for wait in only(Wait, decided(nodes, claims)) if wait.claim == claims[-1].id]
    assert (found.cause, found.reason) == (cause, reason)


def test_settings_are_its_own():
    claims = [run(wanted=2, held={"a": 1}, noticed_s=NOW_S - 2)]
    assert only(Grant, decided(TWO, claims)) == []
    assert len(only(Grant, decided(TWO, claims, settings=Settings(cool_down_s=1)))) == 1
