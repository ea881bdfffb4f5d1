import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from eagleray.packaging import flatten, unflatten
from eagleray.packaging.tensors import pack
from support.examples import examples

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]

tensors = st.builds(
    lambda shape, dtype, seed: torch.from_numpy(np.random.default_rng(seed).integers(0, 2, size=shape)).to(
        dtype
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.text(max_size=4) | st.integers(-3, 3) | st.sampled_from(["$", "__metadata__", "a/b", "0"])
trees = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


def same(left, right):
    """Equal in type and value, NaN and -0.0 included."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        both_nan = math.isnan(left) and math.isnan(right)
        return both_nan or (left == right and math.copysign(1, left) == math.copysign(1, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(trees)
@examples(60)
def test_a_tree_survives_the_files(tree):
    found, document = flatten(tree)
    text = json.dumps(document, allow_nan=False)  # strict JSON
    assert same(unflatten(load(pack(found)), json.loads(text)), tree)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_as_if_never_saved(kind):
    def trained(steps, saved=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {"betas": (0.9, 0.95)}
        optimizer = kind(model.parameters(), lr=0.1, **options)
        if saved:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(4, 3).double()).square().sum().backward()
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()

    weights, optimizer = trained(3)
    found, document = flatten(optimizer)
    loaded = unflatten(load(pack(found)), json.loads(json.dumps(document)))
    straight, resumed = trained(5), trained(2, (weights, loaded))
    assert all(torch.equal(straight[0][name], resumed[0][name]) for name in straight[0])


def test_plain_json_stands_for_itself():
    plain = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert flatten(plain) == ({}, plain)


@pytest.mark.parametrize("value", [{1, 2}, b"x", np.float32(1), object()])
def test_what_cannot_be_saved_is_named_by_its_path(value):
    with pytest.raises(TypeError, match=r"^/state/0/odd: a .* cannot be saved"):
        flatten({"state": {0: {"odd": value}}})
