"""How nodes are asked for and units ended by force, with placement groups that a test moves."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import ray

from eagleray.capacity import Ask
from eagleray.cluster import ray_side_ray260 as module
from eagleray.cluster.names import ASK_GROUP
from eagleray.cluster.ray_side_ray260 import RaySide, pin_of
from eagleray.cluster.side import Held

CPU = {"CPU": 1.0}
FULL, ROOM = {"CPU": 0.0}, {"CPU": 1.0}


class Groups:
    """The cluster's placement groups, each PENDING until a test places it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table: dict[str, dict] = {}
        self.selectors: dict[str, dict] = {}
        self.log: list[str] = []
        # `ray.util.placement_group` is also the name of a function.
        monkeypatch.setattr(importlib.import_module("ray.util.placement_group"), "placement_group", self.make)
        monkeypatch.setattr(module, "_remove", self.remove)
        monkeypatch.setattr(module, "groups", self.named)

    def make(self, bundles, name, bundle_label_selector=None):
        group_id = f"g{len(self.selectors)}"
        self.selectors[group_id] = bundle_label_selector[0] if bundle_label_selector else {}
        self.add(group_id, name, "PENDING", "", bundles[0])
        self.log.append(f"made {group_id}")
        return SimpleNamespace(id=SimpleNamespace(hex=lambda: group_id))

    def add(self, group_id: str, name: str, state: str, *nodes: str) -> None:
        *there, bundle = nodes if isinstance(nodes[-1], dict) else (*nodes, CPU)
        self.table[group_id] = {
            "name": name,
            "state": state,
            "bundles": dict.fromkeys(range(len(there)), bundle),
            "bundles_to_node_id": dict(enumerate(there)),
        }

    def place(self, group_id: str, node: str) -> None:
        self.table[group_id] |= {"state": "CREATED", "bundles_to_node_id": {0: node}}

    def remove(self, group_id: str) -> None:
        del self.table[group_id]
        self.log.append(f"removed {group_id}")

    def named(self, prefix: str) -> list[tuple[str, dict]]:
        return [
            (group_id, found) for group_id, found in self.table.items() if found["name"].startswith(prefix)
        ]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(monkeypatch)


def asks(num_new: int, claim: str = "r", **labels: str) -> list[Ask]:
    return [Ask(claim, {**CPU, "GPU": 0.0}, labels, num_new, num_new)]


def test_a_group_for_each_unit_on_none_of_the_nodes_that_are_there(groups):
    side = RaySide()
    assert side.ask(asks(2, pool="train"), {"a": FULL, "b": ROOM})
    assert groups.selectors == {
        "g0": {"pool": "train", "ray.io/node-id": "!in(a,b)"},
        "g1": {"pool": "train", "ray.io/node-id": "!in(a,b)"},
    }
    assert all(found["name"].startswith(f"{ASK_GROUP}r:") for found in groups.table.values())
    assert groups.table["g0"]["bundles"] == {0: CPU}
    assert side.ask(asks(2, pool="train"), {"a": FULL})
    assert len(groups.selectors) == 2, "the same is not asked again"
    assert side.ask(asks(1, pool="train"), {"a": FULL})
    assert len(groups.table) == 1
    assert not side.ask([], {"a": FULL})
    assert groups.table == {}


def test_on_a_cluster_without_nodes_any_will_do(groups):
    RaySide().ask(asks(1), {})
    assert groups.selectors == {"g0": {}}


def test_a_node_that_has_come_is_left_and_kept_from_the_other_asks(groups):
    side = RaySide()
    side.ask(asks(2), {"a": FULL})
    groups.place("g0", "x")
    side.settle({"a": FULL, "x": FULL})
    assert groups.log == ["made g0", "made g1", "made g2", "removed g0", "removed g1"], "new ones come first"
    assert groups.selectors["g2"] == {"ray.io/node-id": "!in(a,x)"}
    assert side.ask(asks(1), {"a": FULL, "x": ROOM})
    assert list(groups.table) == ["g2"]


def test_nothing_ends_while_ray_may_be_placing_it(groups):
    side = RaySide()
    side.ask(asks(2), {"a": FULL})
    groups.table["g1"]["state"] = "PREPARED"
    assert side.ask([], {"a": FULL, "x": ROOM}), "there is room for both on a node that has just come"
    assert list(groups.table) == ["g0", "g1"]
    groups.place("g1", "x")
    assert not side.ask([], {"a": FULL, "x": FULL})
    assert groups.table == {}


def test_a_group_that_may_be_being_placed_is_not_made_anew(groups):
    side = RaySide()
    side.ask(asks(2), {})
    groups.place("g0", "x")
    side.settle({"x": FULL, "y": ROOM})
    assert list(groups.table) == ["g1"]
    groups.place("g1", "y")
    side.settle({"x": ROOM, "y": FULL})
    assert groups.table == {}


def test_what_a_ledger_before_this_one_asked_for_ends(groups):
    groups.add("old", f"{ASK_GROUP}r:1", "PENDING", "")
    groups.add("placed", f"{ASK_GROUP}r:2", "CREATED", "a")
    groups.add("other", "of somebody else", "CREATED", "a")
    side = RaySide()
    assert not side.ask([], {"a": FULL})
    assert list(groups.table) == ["other"]


def test_what_was_made_before_a_call_failed_ends(groups, monkeypatch):
    side, make = RaySide(), module._made
    side.ask([], {})

    def fails_at_the_second(model):
        if groups.table:
            raise TimeoutError("the GCS is away")
        return make(model)

    monkeypatch.setattr(module, "_made", fails_at_the_second)
    with pytest.raises(TimeoutError):
        side.ask(asks(2), {"a": FULL})
    monkeypatch.setattr(module, "_made", make)
    assert side.ask(asks(2), {"a": FULL})
    assert groups.log[-1] == "removed g0"
    assert list(groups.table) == ["g1", "g2"]


def test_by_force_the_newest_units_of_the_claim_end_on_that_node(groups):
    for group_id, name, *nodes in (
        ("1", "eagleray-claim:serve:a:9", "n"),
        ("2", "eagleray-claim:serve:a:10", "n"),
        ("3", "eagleray-claim:serve:a:11", "m"),
        ("4", "eagleray-claim:serve:a:x:12", "n"),  # of the claim serve:a:x
        ("5", "eagleray-claim:serve:a:13", "n", "m"),  # more than what is to go
    ):
        groups.add(group_id, name, "CREATED", *nodes)
    assert RaySide().evict("serve:a", {"n": 1}, {"n": 1}) == {"n": 1}
    assert list(groups.table) == ["1", "3", "4", "5"]
    assert RaySide().evict("serve:a", {"n": 2, "m": 2}, {}) == {"n": 2, "m": 2}
    assert list(groups.table) == ["4"]
    assert RaySide().evict("nobody", {"n": 1}, {}) == {}


def test_by_force_nothing_ends_that_is_to_stay(groups):
    """The holder has removed one of two, and not said so yet."""
    groups.add("1", "eagleray-claim:r:1", "CREATED", "n")
    groups.add("2", "eagleray-claim:r:2", "CREATED", "m")
    assert RaySide().evict("r", {"n": 1, "m": 1}, {"n": 1}) == {"m": 1}
    assert list(groups.table) == ["1"]


def test_a_group_that_does_not_go_has_not_ended(groups, monkeypatch):
    groups.add("1", "eagleray-claim:r:1", "CREATED", "n")
    monkeypatch.setattr(module, "_remove", lambda _group_id: None)
    monkeypatch.setattr(module, "_GONE_S", 0.05)
    assert RaySide().evict("r", {"n": 1}, {}) == {}


class Coordinator:
    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.request_resources = SimpleNamespace(remote=lambda **request: self.requests.append(request))
        self.cancel_request = SimpleNamespace(remote=lambda name: self.requests.append({"cancelled": name}))


def test_the_coordinator_is_told_what_is_held_where_there_is_one(monkeypatch):
    coordinator, is_there = Coordinator(), [False]

    def find(name: str, namespace: str) -> Coordinator:
        assert name == namespace == "AutoscalingCoordinator"
        if not is_there[0]:
            raise ValueError("none")
        return coordinator

    monkeypatch.setattr(ray, "get_actor", find)
    monkeypatch.setattr(ray, "get", lambda _call, timeout: None)
    side, held = RaySide(), [Held("a", CPU, 2)]
    totals = {"a": {"CPU": 2.0, "eagleray_node_n1": 1.0}, "b": {"CPU": 2.0, "eagleray_node_n2": 1.0}}
    side.tell(held, totals)
    is_there[0] = True
    side.tell(held, totals)
    side.tell(held, totals)
    assert len(coordinator.requests) == 1, "and again only in 20 s"
    request = coordinator.requests[0]
    assert request["resources"] == [{"CPU": 1.0, "eagleray_node_n1": 0.001}] * 2
    assert (request["requester_id"], request["priority"].value) == ("eagleray-ledger", 100)
    side.tell([], totals)
    assert coordinator.requests[1:] == [{"cancelled": "eagleray-ledger"}]


@pytest.mark.parametrize(
    ("total", "others", "pin"),
    [
        (
            {"CPU": 1, "node:10.0.0.7": 1, "node:__internal_head__": 1},
            [{"node:10.0.0.8": 1}],
            "node:10.0.0.7",
        ),
        ({"CPU": 1, "node:127.0.0.1": 1}, [{"node:127.0.0.1": 1}], ""),
        ({"eagleray_node_n1": 1, "node:127.0.0.1": 1}, [{"node:127.0.0.1": 1}], "eagleray_node_n1"),
    ],
)
def test_a_resource_that_names_one_node(total, others, pin):
    assert pin_of(total, others) == pin
