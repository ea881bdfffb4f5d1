"""Requests that cannot be right, and what is seen on a node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eagleray.capacity import ClaimClass, Node, Request
from eagleray.capacity.placement import Capacity, NodeCapacity
from eagleray.errors import CapacityError, InputError
from unit.capacity.claimed import CPU, GPU, node, run, service


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minimum": 3, "wanted": 2}, "minimum (3) exceeds wanted (2); lower one or raise the other"),
        ({"minimum": -1}, "minimum (-1) and wanted (1) must be 0 or more"),
        ({"bundle": {}}, "a unit of nothing; give it some CPU or GPU"),
        ({"bundle": {"CPU": 0}}, "a unit of nothing; give it some CPU or GPU"),
        ({"bundle": {"CPU": -1}}, "a unit of {'CPU': -1}: no amount may be below 0"),
        ({"budget": -1}, "budget (-1) must be 0 or more units"),
        ({"yield_s": 0}, "yield_s (0) must be above 0 seconds"),
        (
            {"rest_class": ClaimClass.SERVING_FLOOR},
            "the minimum (training minimum) ranks below the rest (serving floor)",
        ),
    ],
)
def test_a_request_that_cannot_be_right(values, message):
    request = Request.run("r", "run gpt", CPU, minimum=1, wanted=1)
    with pytest.raises(InputError) as caught:
        replace(request, **values)
    assert str(caught.value) == f"claim of run gpt: {message}"


def test_a_floor_larger_than_the_cluster():
    cluster = Capacity([NodeCapacity("gpu", {"CPU": 2, "GPU": 1}, {}, 3)], 3)
    Request.service("s", "service digits", GPU, floor=3, wanted=9).check(cluster)
    with pytest.raises(CapacityError) as caught:
        Request.service("s", "service digits", GPU, floor=4, wanted=4).check(cluster)
    assert str(caught.value) == (
        "service digits wants 4 floor replicas with 1 GPU each; node types allow at most 3 (each also needs "
        "1 CPU): gpu (1 GPU, 2 CPU) x 3, at most 3 nodes in all; ask for less, or raise max_workers and "
        "max_nodes of the cluster"
    )


def test_each_kind_of_holder_has_its_classes():
    kinds = [
        Request.service("s", "s", CPU, floor=2, wanted=1),
        Request.run("r", "r", CPU, minimum=1, wanted=4),
        Request.search("t", "t", CPU, wanted=4),
        Request.job("j", "j", CPU, units=2),
    ]
    assert [(k.minimum, k.wanted, k.is_gang, k.is_yieldable) for k in kinds] == [
        (2, 2, False, True),
        (1, 4, True, True),
        (0, 4, False, True),
        (2, 2, True, False),
    ]
    ranks = [run(minimum=2, wanted=9).class_of(unit).words for unit in range(4)]
    assert ranks == ["training minimum"] * 2 + ["training share"] * 2


def seen(before: Node | None, in_use: float, *claims, unsaid_since_s: float = 0) -> float:
    found = node("a", 4).with_use({"CPU": in_use}, claims, before, unsaid_since_s=unsaid_since_s)
    return found.other.get("CPU", 0)


STARTING = service(held={"a": 1}, used={}, granted_s=5.0)


@pytest.mark.parametrize(
    ("before", "in_use", "claims", "other"),
    [
        (None, 3, [service(held={"a": 1})], 2),
        (None, 0, [service(held={"a": 1})], 0),  # ended, and its holder has not said so yet
        (None, 1, [STARTING], 1),  # nothing is known from before: rather too little room
        (0, 1, [STARTING], 0),  # it has just started
        (1, 1, [STARTING], 1),  # what was there is still there
        (1, 2, [STARTING], 1),  # and the unit has started beside it
        (1, 0, [STARTING], 0),
        (0, 3, [STARTING], 2),
        (2, 3, [service(held={"a": 1}), STARTING], 2),
        (2, 2, [run(held={"b": 2})], 2),
    ],
)
def test_what_runs_without_a_claim(before, in_use, claims, other):
    known = None if before is None else node("a", 4, other={"CPU": before})
    assert seen(known, in_use, *claims) == other


def test_what_was_given_back_a_moment_ago_is_nobody_elses():
    free, used = node("a", 4), node("a", 4, other={"CPU": 2})
    more = {"unsaid_since_s": 0.0, "leaving": {"CPU": 1}}
    assert free.with_use({"CPU": 1}, [], free, **more).other == {}
    assert free.with_use({"CPU": 3}, [], free, **more).other == {"CPU": 2}
    assert used.with_use({"CPU": 2}, [], used, **more).other == {"CPU": 2}
    assert used.with_use({}, [], used, **more).other == {}


def test_what_should_run_for_long_and_does_not_say_so_is_somebody_else():
    known = node("a", 4)
    assert seen(known, 1, STARTING, unsaid_since_s=5.0) == 0
    assert seen(known, 1, STARTING, unsaid_since_s=5.1) == 1
    assert seen(known, 1, replace(STARTING, granted_s=None)) == 1, "taken over from an older ledger"
