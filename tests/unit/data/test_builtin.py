"""The two datasets that every machine has, the split and the scale."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eagleray.data import Loader, open_dataset
from eagleray.data.normalize import measure
from eagleray.data.parts import ArrayPart
from eagleray.data.split import assign
from eagleray.data.stdlib_text import _files
from eagleray.errors import DataError
from eagleray.specs.data import Split
from unit.data.conftest import make_spec

WHOLE = {"train": 1.0, "validation": 0.0, "test": 0.0}
PLATFORM = str(Path(__file__).parents[3] / "platform")


def everything(part):
    return part.fetch(np.arange(part.num_samples))


def test_digits_are_the_published_ones():
    arrays = everything(open_dataset(make_spec("digits", split=WHOLE)).train)
    assert arrays.inputs.mean() == pytest.approx(4.884164579855314, rel=1e-5)
    assert np.bincount(arrays.targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert arrays.inputs[0, 0, 2].tolist() == [0, 3, 15, 2, 0, 11, 8, 0]


@pytest.mark.slow  # importing scikit-learn takes seconds
def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset = open_dataset(make_spec("digits", split=WHOLE))
    arrays, expected = everything(dataset.train), load_digits()
    np.testing.assert_array_equal(arrays.inputs[:, 0], expected.images.astype(np.float32))
    np.testing.assert_array_equal(arrays.targets, expected.target)
    assert dataset.validation is None
    assert dataset.test is None


def test_digits_are_split_and_scaled_by_the_training_part():
    dataset = open_dataset(make_spec("digits", normalize="standard"))
    parts = [dataset.train, dataset.validation, dataset.test]
    assert sum(part.num_samples for part in parts) == 1797
    assert all(part.num_samples > 120 for part in parts)
    train, test = everything(dataset.train), everything(dataset.test)
    assert (train.inputs.dtype, train.targets.dtype) == (np.float32, np.int64)
    assert abs(train.inputs.mean()) < 1e-4
    assert abs(train.inputs.std() - 1) < 1e-4
    assert test.inputs.mean() != pytest.approx(0, abs=1e-6)
    signature = dataset.signature
    assert signature.input_shape == train.inputs.shape[1:] == (1, 8, 8)
    assert signature.num_classes == len(signature.labels) == 10
    raw = everything(open_dataset(make_spec("digits")).train).inputs
    mean, std = signature.normalization.mean[0], signature.normalization.std[0]
    np.testing.assert_allclose((raw - mean) / std, train.inputs, atol=1e-6)


def test_the_digest_tells_what_matters_apart():
    def digest(**fields):
        return open_dataset(make_spec("digits", **fields)).digest

    assert digest() == digest() == digest(augment={"max_shift_pixels": 1})
    others = {digest(), digest(split_seed=1), digest(normalize="standard")}
    others.add(digest(split={"train": 0.5, "validation": 0.25, "test": 0.25}))
    assert len(others) == 4
    assert len(digest()) == 64


def test_standard_library_text_predicts_the_next_byte():
    dataset = open_dataset(make_spec("stdlib_text", sequence_length=32, max_mib=0.25))
    arrays = everything(dataset.train)
    assert arrays.inputs.dtype == arrays.targets.dtype == np.int64
    assert arrays.inputs.shape == arrays.targets.shape == (dataset.train.num_samples, 32)
    np.testing.assert_array_equal(arrays.inputs[:, 1:], arrays.targets[:, :-1])
    assert arrays.inputs.min() >= 0
    assert arrays.inputs.max() < 256
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part is not None]
    assert sum(part.num_samples for part in parts) == (2**18 - 1) // 32
    assert b"def " in arrays.inputs.astype(np.uint8).tobytes()
    assert dataset.signature.vocabulary_size == 258
    assert dataset.signature.tokenizer == "bytes"


def test_standard_library_files_are_sorted_code_of_no_one_machine(tmp_path):
    names = [
        "b.py", "a.py", "_sysconfigdata__linux.py", "a.txt", "pack/c.py", "site-packages/d.py",
        "test/e.py", "pack/tests/f.py", "config-3.11/g.py", "pack/deep/h.py",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in _files(tmp_path)]
    assert found == ["a.py", "b.py", "pack/c.py", "pack/deep/h.py"]


def test_opening_builtin_data_imports_neither_scikit_learn_nor_torch():
    code = (
        "import sys; from eagleray.data import open_dataset; from eagleray.specs.data import DigitsData;"
        "open_dataset(DigitsData(kind='digits'));"
        "print([name for name in ('torch', 'sklearn', 'ray', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": PLATFORM}
    )
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.5, 0.5, 0), (0.7, 0, 0.3), (1, 0, 0)])
def test_a_split_has_the_asked_sizes_and_does_not_depend_on_the_stretch(fractions):
    split = Split(**dict(zip(("train", "validation", "test"), fractions, strict=True)))
    parts = assign(split, 5, 0, 20_000)
    np.testing.assert_allclose(np.bincount(parts, minlength=3) / 20_000, fractions, atol=0.015)
    assert (np.bincount(parts, minlength=3)[np.array(fractions) == 0] == 0).all()
    np.testing.assert_array_equal(parts[700:900], assign(split, 5, 700, 900))
    assert (parts != assign(split, 6, 0, 20_000)).any() == (fractions != (1, 0, 0))


def test_measuring_in_chunks_is_measuring_at_once():
    rng = np.random.default_rng(0)
    values = rng.normal(1000, 0.01, (500, 3)).astype(np.float32)
    values[:, 2] = 4.5
    at_once, chunked = measure([values]), measure(np.array_split(values, 7))
    np.testing.assert_allclose(at_once.mean, values.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(at_once.std[:2], values.astype(np.float64).std(axis=0)[:2], rtol=1e-3)
    assert at_once.std[2] == 1
    np.testing.assert_allclose(chunked.std, at_once.std, rtol=1e-6)
    np.testing.assert_allclose(chunked.mean, at_once.mean, rtol=1e-6)


def test_a_part_gives_arrays_of_the_callers_own():
    dataset = open_dataset(make_spec("digits"))
    loader = Loader(dataset.train, global_batch_size=4, seed=0)
    first = loader.shard(0, 0, 1)
    expected = first.inputs.copy()
    first.inputs[:] = -1
    np.testing.assert_array_equal(loader.shard(0, 0, 1).inputs, expected)
    assert isinstance(dataset.train, ArrayPart)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            ("stdlib_text", {"augment": {"horizontal_flip": True}, "max_mib": 0.1}),
            ["data.augment is for images"],
        ),
        (("stdlib_text", {"normalize": "standard"}), ["data.normalize", "tokens"]),
        (("stdlib_text", {"max_mib": 1e-5}), ["shorter than one window", "sequence_length"]),
        (
            ("digits", {"split": {"train": 0.9999, "validation": 1e-4, "test": 0}}),
            ["validation", "leaves none"],
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(spec, words):
    kind, fields = spec
    with pytest.raises(DataError) as caught:
        open_dataset(make_spec(kind, **fields))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
