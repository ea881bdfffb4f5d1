"""What is tried: suggesters, trial specs, and how many trials fit a cluster, by table."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eagleray.capacity.placement import Capacity, NodeCapacity
from eagleray.errors import SpecError
from eagleray.specs import TuneSpec, validate
from eagleray.tuning import make_suggester, max_concurrent
from eagleray.tuning.search import describe, describe_resources, trial_spec

BASE: dict[str, Any] = {
    "kind": "train",
    "name": "t",
    "data": {"kind": "stdlib_text"},
    "model": {"kind": "gpt", "width": 8, "num_heads": 2},
    "loss": {"kind": "next_token"},
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "training": {"epochs": 3},
}
LR = {"kind": "loguniform", "min": 1e-4, "max": 1e-1}
HEADS = {"kind": "choice", "values": [2, 4, 8]}
LAYERS = {"kind": "randint", "min": 1, "max": 2}


def spec(**changes: Any) -> TuneSpec:
    table = {
        "kind": "tune",
        "name": "t",
        "metric": "validation_loss",
        "base": BASE,
        "space": {"optimizer.lr": LR, "model.num_heads": HEADS, "model.num_layers": LAYERS},
        "searcher": {"kind": "random"},
        "budget": {"num_trials": 8},
        **changes,
    }
    return validate(TuneSpec, table, name="spec")


def test_a_grid_tries_every_combination_once_the_last_axis_first() -> None:
    search = spec(
        space={"model.num_heads": HEADS, "model.num_layers": LAYERS}, searcher={"kind": "grid"}, budget={}
    )
    suggester = make_suggester(search)
    tried = [tuple(suggester.suggest(number).values()) for number in range(1, search.num_trials + 1)]
    assert tried == [(2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)]


def test_random_values_depend_on_the_seed_and_the_number_alone() -> None:
    first, second = make_suggester(spec()), make_suggester(spec())
    second.tell(1, {}, 0.5)
    assert first.suggest(7) == second.suggest(7)
    assert first.suggest(7) != first.suggest(8)
    assert first.suggest(7) != make_suggester(spec(seed=1)).suggest(7)


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_values_lie_in_the_space_and_make_train_specs(kind: str) -> None:
    search = spec(searcher={"kind": kind})
    suggester = make_suggester(search)
    for number in range(1, 9):
        values = suggester.suggest(number)
        assert list(values) == list(search.space)
        assert 1e-4 <= values["optimizer.lr"] <= 1e-1
        assert values["model.num_heads"] in (2, 4, 8)
        assert values["model.num_layers"] in (1, 2)
        assert trial_spec(search, values).optimizer.lr == values["optimizer.lr"]
        suggester.tell(number, values, 0.5)


def distance(lr: float) -> float:
    return abs(math.log10(lr) + 2)


def test_tpe_learns_also_from_the_trials_of_an_earlier_driver() -> None:
    search = spec(searcher={"kind": "tpe"}, budget={"num_trials": 40}, space={"optimizer.lr": LR})
    earlier = make_suggester(search)
    suggester = make_suggester(search)
    for number in range(1, 21):
        values = earlier.suggest(number)
        value = None if number == 5 else distance(values["optimizer.lr"])
        earlier.tell(number, values, value)
        suggester.tell(number, values, value)
    late = []
    for number in range(21, 33):
        values = suggester.suggest(number)
        late.append(distance(values["optimizer.lr"]))
        suggester.tell(number, values, late[-1])
    assert sum(late) / len(late) < 0.4, "at random the mean is 0.83"


def test_a_resumed_search_does_not_draw_again_what_it_drew_first() -> None:
    search = spec(searcher={"kind": "tpe"})
    first = make_suggester(search)
    earlier = [first.suggest(number) for number in (1, 2)]
    resumed = make_suggester(search)
    for number, values in enumerate(earlier, start=1):
        resumed.tell(number, values, 0.5)
    assert resumed.suggest(3)["optimizer.lr"] not in [values["optimizer.lr"] for values in earlier]


def test_a_choice_among_lists_goes_through_optuna() -> None:
    hidden = {"kind": "choice", "values": [[8], [16, 16]]}
    base = BASE | {"data": {"kind": "digits"}, "loss": {"kind": "cross_entropy"}, "model": {"kind": "mlp"}}
    search = spec(searcher={"kind": "tpe"}, base=base, space={"model.hidden": hidden})
    suggester = make_suggester(search)
    suggester.tell(1, {"model.hidden": [16, 16]}, 0.1)
    assert suggester.suggest(2)["model.hidden"] in ([8], [16, 16])


def test_values_that_exclude_each_other_name_the_trial() -> None:
    values = {"model.num_heads": 3, "model.width": 8}
    with pytest.raises(SpecError, match=r"^model.num_heads=3 model.width=8: model: width \(8\) must be"):
        trial_spec(spec(), values)


def test_values_in_words() -> None:
    assert describe({"optimizer.lr": 0.00123456, "a": [8, [0.5]], "b": "x"}) == (
        "optimizer.lr=0.001235 a=[8,[0.5]] b=x"
    )


CPU = NodeCapacity("cpu", {"CPU": 1}, {"pool": "cpu"}, 3)
GPU = NodeCapacity("gpu", {"CPU": 4, "GPU": 2}, {"pool": "gpu"}, 2)


@pytest.mark.parametrize(
    ("scaling", "budget", "expected"),
    [
        ({"cpus_per_worker": 0.5}, {}, 8),  # 22 would fit; there are 8 trials
        ({"cpus_per_worker": 0.5}, {"max_concurrent_trials": 3}, 3),
        ({"cpus_per_worker": 0.5, "label_selector": {"pool": "cpu"}}, {}, 6),
        ({"gpus_per_worker": 1}, {}, 4),
        ({"gpus_per_worker": 2}, {"max_concurrent_trials": 4}, 2),
        ({"num_workers": 3}, {}, 3),  # 11 CPUs
        ({"num_workers": 11}, {}, 1),
    ],
)
def test_as_many_at_once_as_fit(scaling: dict[str, Any], budget: dict[str, Any], expected: int) -> None:
    search = spec(scaling=scaling, budget={"num_trials": 8, **budget})
    assert max_concurrent(search, Capacity([CPU, GPU])) == expected


def test_where_nodes_may_come_that_cannot_be_seen_from_here() -> None:
    search = spec(budget={"num_trials": 20})
    assert max_concurrent(search, Capacity([CPU], is_complete=False)) == 8


def test_resources_in_words() -> None:
    assert describe_resources(spec(scaling={"cpus_per_worker": 0.5}).scaling) == "0.5 CPU"
    assert (
        describe_resources(spec(scaling={"num_workers": 2, "gpus_per_worker": 1}).scaling)
        == "2 workers with 1 CPU and 1 GPU"
    )
