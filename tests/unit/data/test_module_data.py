"""A function of the user's own: what it may return, and what is said of the rest."""

import numpy as np
import pytest

from eagleray.data import open_dataset
from eagleray.errors import DataError
from unit.data.conftest import make_spec

TABULAR = """
import numpy as np
def make(n=40, **signature):
    rng = np.random.default_rng(0)
    names = [("x", "y")[i % 2] for i in range(n)]
    return rng.normal(5, 2, (n, 3)), names, {"input_kind": "tabular", **signature}
"""


def opened(name, **fields):
    fields.setdefault("split", {"train": 1.0, "validation": 0.0, "test": 0.0})
    dataset = open_dataset(make_spec("module", function=f"{name}:make", **fields))
    return dataset.signature, dataset.train.fetch(np.arange(dataset.train.num_samples))


def test_a_table_with_labels(module):
    signature, arrays = opened(module(TABULAR), normalize="standard", arguments={"n": 30})
    assert arrays.inputs.shape == (30, 3)
    assert arrays.inputs.dtype == np.float32
    np.testing.assert_allclose(arrays.inputs.mean(axis=0), 0, atol=1e-5)
    assert signature.labels == ("x", "y")
    assert arrays.targets.tolist() == [0, 1] * 15
    assert signature.input_shape == (3,)
    assert signature.normalization is not None


@pytest.mark.parametrize(
    ("returned", "kind", "targets"),
    [
        ("np.ones((4, 1, 2, 2)), [0, 1, 2, 1], {'input_kind': 'image'}", "class", [0, 1, 2, 1]),
        (
            "np.ones((4, 1, 2, 2)), [0, 1, 1, 1], {'input_kind': 'image', 'labels': ['a', 'b', 'c']}",
            "class",
            [0, 1, 1, 1],
        ),
        ("np.ones((2, 3)), [0.5, 1.5], {'input_kind': 'tabular'}", "value", [[0.5], [1.5]]),
        ("np.ones((2, 5, 3)), np.ones((2, 2)), {'input_kind': 'tabular'}", "value", [[1, 1], [1, 1]]),
        (
            "np.array([[1, 2, 3]]), None, {'input_kind': 'tokens', 'vocabulary_size': 5}",
            "tokens",
            [[2, 3]],
        ),
        (
            "np.array([[1, 2]]), np.array([[-100, 2]]), "
            "{'input_kind': 'tokens', 'vocabulary_size': 5, 'target_kind': 'tokens'}",
            "tokens",
            [[-100, 2]],
        ),
    ],
)
def test_other_kinds(module, returned, kind, targets):
    signature, arrays = opened(module(f"import numpy as np\ndef make(): return {returned}"))
    assert signature.target_kind == kind
    assert arrays.targets.tolist() == targets
    assert signature.input_shape == arrays.inputs.shape[1:]
    assert arrays.targets.dtype == (np.float32 if kind == "value" else np.int64)
    if kind == "class":
        assert signature.num_classes == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def other(): pass", ["has no function or class 'make'"]),
        ("import not_installed_anywhere", ["cannot import", "not_installed_anywhere", "`code`"]),
        ("def make(): return (", ["cannot import", "SyntaxError: '(' was never closed", ".py, line 1)"]),
        ("def make(): pass\n1 / 0", ["cannot import", "ZeroDivisionError: division by zero", ".py, line 2)"]),
        ("\nraise ValueError('a\\nb')", ["ValueError: a b (", ".py, line 2)"]),
        ("import sys\nsys.exit('no data')", ["cannot import", "SystemExit: no data (", ".py, line 2)"]),
        ("import json\n\njson.loads('{')", ["JSONDecodeError: ", ".py, line 3)"]),
        ("def make():\n  import sys\n  sys.exit(3)", ["raised SystemExit: 3 (", ".py, line 3)"]),
        ("def make(): return 1", ["returned int", "(inputs, targets, signature table)"]),
        ("def make(): return [1], [2]", ["returned (list, list)"]),
        ("def make(a): return 1", ["called with []", "TypeError"]),
        ("def make(): return 1 / 0", ["raised ZeroDivisionError: division by zero"]),
        ("def make(): return ['a'], [1], {}", ["inputs of shape (1,)"]),
        (
            "def make(): return [[1], [2]], [0, 1, 1], {'input_kind': 'tabular'}",
            ["2 inputs and targets of shape (3,)"],
        ),
        ("def make(): return [[1], [2]], [0, 1], {'input_kind': 'image'}", ["must have 4 dimensions"]),
        (
            "def make(): return [[1], [2]], [0, 1], {'input_kind': 'pictures'}",
            ["signature table", "input_kind"],
        ),
        ("def make(): return [[1], [2]], [0, 1], {}", ["signature table", "input_kind"]),
        ("def make(): return [[1], [2]], [0, 1], {'input_kind': 'tabular', 'x': 1}", ["unknown key 'x'"]),
        ("def make(): return [[1], [2]], [0, 0], {'input_kind': 'tabular'}", ["one class only"]),
        (
            "def make(): return [[1], [2]], [0, 3], {'input_kind': 'tabular', 'labels': ['a', 'b']}",
            ["from 0 to 3 and 2 labels"],
        ),
        ("def make(): return [[1], [float('nan')]], [0, 1], {'input_kind': 'tabular'}", ["first: sample 1"]),
        (
            "def make(): return [[1], [2]], [float('nan'), 1.0], {'input_kind': 'tabular'}",
            ["targets with NaN", "first: sample 0"],
        ),
        (
            "def make(): return [[1, 7]], None, {'input_kind': 'tokens', 'vocabulary_size': 5}",
            ["vocabulary_size (5)", "1 to 7"],
        ),
        ("def make(): return [[1], [2]], [[0], [1]], {'input_kind': 'tabular'}", ["must be [samples]"]),
        ("def make(): return [[1], [2]], None, {'input_kind': 'tabular'}", ["no targets (None)"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(module, source, words):
    name = module(source)
    with pytest.raises(DataError) as caught:
        opened(name)
    message = str(caught.value)
    assert message.startswith(f"data.function '{name}:make'")
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_module_that_is_not_there():
    with pytest.raises(DataError, match="cannot import 'no_such_module_here'"):
        opened("no_such_module_here")
