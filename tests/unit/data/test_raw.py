"""Raw inputs for a model that normalises by itself: everything else of the dataset stays."""

from __future__ import annotations

import numpy as np
import pytest

from eagleray.data import normalize, open_dataset
from eagleray.data.stored import StoredPart
from unit.data.conftest import flowers, make_spec, write

SOURCE = """
import numpy as np
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(5, 3, (50, 2)), rng.normal(size=50), {"input_kind": "tabular"}
"""


@pytest.fixture
def specs(tmp_path, module):
    path = write(flowers(400), tmp_path / "flowers.parquet", rows_per_block=20)
    table = {"paths": path, "target": "species", "features": ["width", "height"], "normalize": "standard"}
    return {
        "digits": make_spec("digits", normalize="standard"),
        "module": make_spec("module", function=f"{module(SOURCE)}:arrays", normalize="standard"),
        "table": make_spec(**table),
        "storage": make_spec(**table, memory_budget_mib=0.005),
        "text": make_spec("stdlib_text", sequence_length=16, max_mib=0.1),
    }


@pytest.mark.parametrize("kind", ["digits", "module", "table", "storage", "text"])
def test_only_the_normalisation_is_left_out(specs, kind):
    scaled, raw = open_dataset(specs[kind]), open_dataset(specs[kind], is_raw=True)
    assert isinstance(raw.train, StoredPart) == (kind == "storage")
    normalization = scaled.signature.normalization
    assert (normalization is None) == (kind == "text")
    assert raw.signature == scaled.signature.model_copy(update={"normalization": None})
    assert raw.digest == scaled.digest
    for name in ("train", "validation", "test"):
        ours, theirs = getattr(raw, name), getattr(scaled, name)
        assert ours.num_samples == theirs.num_samples
        positions = np.arange(ours.num_samples)
        fetched, expected = ours.fetch(positions), theirs.fetch(positions)
        np.testing.assert_array_equal(normalize.apply(fetched.inputs, normalization), expected.inputs)
        np.testing.assert_array_equal(fetched.targets, expected.targets)


def test_digits_are_grey_values_again(specs):
    raw = open_dataset(specs["digits"], is_raw=True)
    assert set(np.unique(raw.test.fetch(np.arange(50)).inputs)) <= set(range(17))
