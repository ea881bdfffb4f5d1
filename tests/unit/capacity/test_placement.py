"""The capacity check as a table: never a false refusal, always the number that would fit."""

import pytest

from eagleray.capacity.placement import Capacity, NodeCapacity, require
from eagleray.errors import CapacityError

TRAIN = NodeCapacity("train_gpu", {"CPU": 1, "GPU": 1, "memory": 2**31}, {"eagleray.io/pool": "train"}, 4)
SERVE = NodeCapacity("serve_gpu", {"CPU": 1, "GPU": 1, "memory": 2**31}, {"eagleray.io/pool": "serve"}, 3)
CPU = NodeCapacity("cpu_worker", {"CPU": 4}, {"eagleray.io/pool": "cpu"}, 2)
HEAD = NodeCapacity("head", {"memory": 2**31, "eagleray_node_head": 1}, {}, 1, is_fixed=True)
LOCAL = Capacity([TRAIN, SERVE, CPU, HEAD], max_nodes=5)
WORKER = {"GPU": 1, "CPU": 1}
IN_TRAIN = {"eagleray.io/pool": "train"}


@pytest.mark.parametrize(
    ("bundle", "selector", "most"),
    [
        (WORKER, {}, 5),  # 7 by the caps of the types, 5 by that of the cluster
        (WORKER, IN_TRAIN, 4),
        (WORKER, {"eagleray.io/pool": "!train"}, 3),
        (WORKER, {"eagleray.io/pool": "in(train, serve)"}, 5),
        (WORKER, {"eagleray.io/pool": "!in(train, serve)"}, 0),
        (WORKER, {"eagleray.io/pool": "nobody"}, 0),
        (WORKER, {"ray.io/node-id": "abc"}, 5),  # a label that Ray adds as the node starts
        ({"GPU": 2}, {}, 0),
        ({"GPU": 0.5}, IN_TRAIN, 8),
        ({"CPU": 1}, {}, 2 * 4 + 3),
        ({"CPU": 0.1}, {"eagleray.io/pool": "cpu"}, 80),
        ({"CPU": 1, "memory": 2**30}, IN_TRAIN, 4),
        ({"CPU": 1, "memory": 2**32}, IN_TRAIN, 0),
        ({"CPU": 1, "memory": 2**40}, {"eagleray.io/pool": "cpu"}, 8),  # the type does not list its memory
        ({"accelerator_type:A10G": 0.001, "GPU": 1}, {}, 5),
        ({"license": 1}, {}, 0),
    ],
)
def test_how_many_fit(bundle, selector, most):
    assert LOCAL.num_placeable(bundle, selector) == most


def test_what_fits_is_not_refused():
    require(LOCAL, [WORKER] * 4, IN_TRAIN)
    require(LOCAL, [], IN_TRAIN)
    require(LOCAL, [WORKER, WORKER, {"CPU": 4}])


def test_a_refusal_says_what_would_fit_and_where():
    two = Capacity([NodeCapacity("train_gpu", {"CPU": 1, "GPU": 1}, IN_TRAIN, 2)], max_nodes=4)
    with pytest.raises(CapacityError) as caught:
        require(two, [WORKER] * 4)
    assert str(caught.value) == (
        "wants 4 workers with 1 GPU each; node types allow at most 2 (each also needs 1 CPU): "
        "train_gpu (1 GPU, 1 CPU) x 2, at most 4 nodes in all; "
        "ask for less, or raise max_workers and max_nodes of the cluster"
    )
    assert caught.value.exit_code == 3


def test_a_refusal_names_the_label():
    with pytest.raises(
        CapacityError, match=r"wants 1 worker with 1 GPU with label eagleray.io/pool=tpu; .*at most 0"
    ):
        require(LOCAL, [WORKER], {"eagleray.io/pool": "tpu"})


def test_a_refusal_says_what_is_to_be_placed():
    with pytest.raises(CapacityError, match=r"^wants 1 replica with 64 GPU; .* 0 \(each also needs 1 CPU"):
        require(LOCAL, [{"CPU": 1, "GPU": 64}], noun="replica")
    with pytest.raises(CapacityError, match=r"^wants 3 replicas with 0.5 GPU each; .*at most"):
        require(LOCAL, [{"CPU": 64, "GPU": 0.5}] * 3, noun="replica")


def test_shapes_that_fit_alone_are_refused_in_sum():
    with pytest.raises(CapacityError, match=r"wants 6 GPU in all; node types allow at most 5 GPU"):
        require(LOCAL, [WORKER] * 3 + [{"GPU": 1}] * 3)


def test_unknown_node_types_refuse_nothing():
    require(Capacity([CPU], is_complete=False), [{"GPU": 8}] * 100)


def test_unknown_labels_may_match():
    unlabelled = NodeCapacity("group", {"GPU": 8}, None, 1)
    require(Capacity([unlabelled]), [{"GPU": 1}] * 8, IN_TRAIN)


LABELS = {"eagleray.io/pool": "train", "ray.io/node-id": "abc"}


def machine(name, **resources):
    return NodeCapacity(name, {"CPU": 2, "memory": 2**31, f"node:{name}": 1, **resources}, LABELS, 1, True)


@pytest.mark.parametrize(
    ("selector", "refusal"),
    [
        (
            {},
            "wants 4 workers with 1 GPU each; the cluster's machines hold at most 3 (each also needs 1 CPU): "
            "2 machines with 1 GPU, 2 CPU, 1 machine with 4 GPU, 1 CPU; "
            "ask for less, or add machines: ray start --address=HEAD:PORT",
        ),
        (
            {"pool": "b"},
            "wants 4 workers with 1 GPU each with label pool=b; the cluster's machines hold at most 0 "
            "(each also needs 1 CPU): none has that label; ask for less or for no label, or add machines: "
            "ray start --address=HEAD:PORT --labels=pool=b",
        ),
    ],
)
def test_machines_that_nobody_can_add_to_are_told_as_such(selector, refusal):
    plain = Capacity([machine("a", GPU=1), machine("b", GPU=1), machine("c", GPU=4, CPU=1)])
    require(plain, [WORKER] * 3, IN_TRAIN)
    with pytest.raises(CapacityError) as caught:
        require(plain, [WORKER] * 4, selector)
    assert str(caught.value) == refusal


def test_machines_are_told_with_what_was_asked_for():
    with pytest.raises(
        CapacityError, match=r"1 machine with 1 GPU, 2 CPU, 2 GiB memory; ask for less, or add"
    ):
        require(Capacity([machine("a", GPU=1)]), [{"GPU": 1, "memory": 2**32}])


def test_machines_beside_node_types_count_once():
    with pytest.raises(
        CapacityError,
        match=r"at most 3 .*: train_gpu .* x 2, 1 machine with 1 GPU, 2 CPU; .*raise max_workers",
    ):
        require(Capacity([NodeCapacity("train_gpu", WORKER, {}, 2), machine("a", GPU=1)]), [WORKER] * 4)
