"""Tables in memory: every format, input kind and target kind."""

import contextlib

import numpy as np
import pyarrow as pa
import pytest

from eagleray.data import open_dataset
from eagleray.errors import DataError
from eagleray.specs import IGNORED_TARGET
from unit.data.conftest import flowers, make_spec, write

FORMATS = ["parquet", "csv", "arrow", "jsonl"]
LIST_FORMATS = ["parquet", "arrow", "jsonl"]


def opened(paths, no_split, **fields):
    dataset = open_dataset(make_spec(paths=paths, split=no_split, **fields))
    arrays = dataset.train.fetch(np.arange(dataset.train.num_samples))
    return dataset.signature, arrays.inputs, arrays.targets


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_table_of_numbers_with_named_classes(tmp_path, no_split, suffix):
    table = flowers()
    path = write(table, tmp_path / f"flowers.{suffix}")
    signature, inputs, targets = opened(path, no_split, target="species", features=["width", "height"])
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs[:, 0], table["width"].to_numpy(), rtol=1e-6)
    np.testing.assert_array_equal(inputs[:, 1], table["height"].to_numpy())
    assert signature.labels == ("aster", "iris", "rose")
    assert targets.dtype == np.int64
    assert [signature.labels[target] for target in targets] == table["species"].to_pylist()
    assert signature.feature_names == ("width", "height")
    assert signature.input_shape == (2,)
    assert signature.num_classes == 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_value_target_and_every_numeric_column(tmp_path, no_split, suffix):
    table = flowers()
    path = write(table, tmp_path / f"flowers.{suffix}")
    signature, inputs, targets = opened(path, no_split, target="price", target_kind="value")
    assert signature.feature_names == ("width", "height")
    assert signature.target_shape == (1,)
    assert targets.shape == (60, 1)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets[:, 0], table["price"].to_numpy(), rtol=1e-5)
    assert inputs.shape == (60, 2)


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_formats_give_the_same_dataset(tmp_path, suffix):
    fields = {"target": "species", "features": ["height"], "normalize": "standard"}
    expected = open_dataset(make_spec(paths=write(flowers(), tmp_path / "a.parquet"), **fields))
    found = open_dataset(make_spec(paths=write(flowers(), tmp_path / f"b.{suffix}"), **fields))
    assert (found.digest, found.signature) == (expected.digest, expected.signature)


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ([2, 0, 1, 1], ("0", "1", "2"), [2, 0, 1, 1]),
        ([7, 10, 7, 9], ("7", "9", "10"), [0, 2, 0, 1]),
        ([1.0, 0.0, 1.0, 1.0], ("0", "1"), [1, 0, 1, 1]),
        ([True, False, True, True], ("false", "true"), [1, 0, 1, 1]),
        (["10", "9", "10", "9"], ("9", "10"), [1, 0, 1, 0]),
        (["b", "a", "c", "a"], ("a", "b", "c"), [1, 0, 2, 0]),
        (["b", "1", "b", "1"], ("1", "b"), [1, 0, 1, 0]),
        ([-1, 1, -1, 1], ("-1", "1"), [0, 1, 0, 1]),
    ],
)
@pytest.mark.parametrize("suffix", FORMATS)
def test_classes_in_sorted_order(tmp_path, no_split, suffix, values, labels, expected):
    path = write(pa.table({"x": [1.0, 2, 3, 4], "y": values}), tmp_path / f"t.{suffix}")
    signature, _, targets = opened(path, no_split, target="y")
    assert signature.labels == labels
    assert targets.tolist() == expected


def test_classes_of_a_dictionary_column(tmp_path, no_split):
    column = pa.array(["b", "a", "b"]).dictionary_encode()
    path = write(pa.table({"x": [1, 2, 3], "y": column}), tmp_path / "t.parquet")
    signature, _, targets = opened(path, no_split, target="y")
    assert (signature.labels, targets.tolist()) == (("a", "b"), [1, 0, 1])


@pytest.mark.parametrize("suffix", LIST_FORMATS)
@pytest.mark.parametrize("element", [pa.uint8(), pa.float32()])
def test_images(tmp_path, no_split, suffix, element):
    pixels = np.arange(5 * 2 * 3 * 4).reshape(5, 24)
    table = pa.table({"pixels": pa.array(pixels.tolist(), pa.list_(element)), "y": [0, 1, 0, 1, 1]})
    path = write(table, tmp_path / f"t.{suffix}")
    fields = {"input_kind": "image", "features": ["pixels"], "target": "y", "input_shape": [2, 3, 4]}
    signature, inputs, _ = opened(path, no_split, **fields)
    np.testing.assert_array_equal(inputs, pixels.reshape(5, 2, 3, 4))
    assert inputs.dtype == np.float32
    assert signature.input_shape == (2, 3, 4)
    scaled, inputs, _ = opened(path, no_split, normalize="standard", **fields)
    np.testing.assert_allclose(inputs.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    assert len(scaled.normalization.mean) == 2


def test_fixed_size_lists_and_slices(tmp_path, no_split):
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12.0)), 4)
    path = write(pa.table({"pixels": column, "y": [0, 1, 0]}), tmp_path / "t.arrow", rows_per_block=2)
    fields = {"input_kind": "image", "features": ["pixels"], "target": "y", "input_shape": [1, 2, 2]}
    _, inputs, _ = opened(path, no_split, **fields)
    np.testing.assert_array_equal(inputs.ravel(), np.arange(12))


@pytest.mark.parametrize("suffix", LIST_FORMATS)
def test_audio_takes_its_length_from_the_first_clip(tmp_path, no_split, suffix):
    clips = np.random.default_rng(0).uniform(-1, 1, (4, 50)).astype(np.float32)
    table = pa.table({"clip": pa.array(clips.tolist(), pa.list_(pa.float32())), "y": list("abab")})
    path = write(table, tmp_path / f"t.{suffix}")
    fields = {"input_kind": "audio", "features": ["clip"], "target": "y", "sample_rate_hz": 8000}
    signature, inputs, _ = opened(path, no_split, **fields)
    np.testing.assert_allclose(inputs, clips, rtol=1e-6)
    assert (signature.input_shape, signature.sample_rate_hz) == ((50,), 8000)


def test_audio_of_16_bits_is_scaled_to_one(tmp_path, no_split):
    clips = pa.array([[0, 16384, -32768], [1, 2, 3]], pa.list_(pa.int16()))
    path = write(pa.table({"clip": clips, "y": [0, 1]}), tmp_path / "t.parquet")
    fields = {"input_kind": "audio", "features": ["clip"], "target": "y", "sample_rate_hz": 8000}
    assert opened(path, no_split, **fields)[1][0].tolist() == [0, 0.5, -1]


@pytest.mark.parametrize("suffix", FORMATS)
def test_text_without_a_target_predicts_its_next_byte(tmp_path, no_split, suffix):
    path = write(pa.table({"t": ["abcdefg", "xy", "é\nNA"], "n": [1, 2, 3]}), tmp_path / f"t.{suffix}")
    signature, inputs, targets = opened(path, no_split, input_kind="text", features=["t"], sequence_length=4)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.tolist() == [
        [97, 98, 99, 100],
        [120, 121, 256, 256],
        [0xC3, 0xA9, 10, 78],
    ]
    i = IGNORED_TARGET
    assert targets.tolist() == [[98, 99, 100, 101], [121, i, i, i], [0xA9, 10, 78, 65]]
    assert (signature.vocabulary_size, signature.tokenizer) == (258, "bytes")
    assert (signature.target_kind, signature.target_shape) == ("tokens", (4,))


def test_text_with_a_class(tmp_path, no_split):
    path = write(pa.table({"t": ["abcdefg", None, "x"], "y": list("bab")}), tmp_path / "t.parquet")
    signature, inputs, targets = opened(
        path, no_split, input_kind="text", features=["t"], target="y", sequence_length=4
    )
    assert inputs.tolist() == [[97, 98, 99, 100], [256] * 4, [120, 256, 256, 256]]
    assert targets.tolist() == [1, 0, 1]
    assert signature.target_kind == "class"


@pytest.mark.parametrize("suffix", LIST_FORMATS)
def test_tokens_are_padded_with_a_token_of_their_own(tmp_path, no_split, suffix):
    tokens = pa.array([[1, 2, 3, 4, 5], [9], [0, 0]], pa.list_(pa.int64()))
    path = write(pa.table({"t": tokens}), tmp_path / f"t.{suffix}")
    signature, inputs, targets = opened(
        path, no_split, input_kind="tokens", features=["t"], sequence_length=3, vocabulary_size=10
    )
    assert (signature.vocabulary_size, signature.padding_token, signature.mask_token) == (12, 10, 11)
    assert inputs.tolist() == [[1, 2, 3], [9, 10, 10], [0, 0, 10]]
    i = IGNORED_TARGET
    assert targets.tolist() == [[2, 3, 4], [i, i, i], [0, i, i]]


def test_a_list_of_values_as_target(tmp_path, no_split):
    table = pa.table({"x": [1.0, 2], "y": [[1.0, 2, 3], [4.0, 5, 6]]})
    path = write(table, tmp_path / "t.parquet")
    signature, _, targets = opened(path, no_split, target="y", target_kind="value")
    assert targets.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert signature.target_shape == (3,)


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_folders_and_globs_in_their_order(tmp_path, no_split, suffix):
    table = flowers(30)
    for index in (2, 0, 1):
        write(table.slice(index * 10, 10), tmp_path / f"data/part-{index}.{suffix}")
    (tmp_path / "data/_SUCCESS").touch()
    (tmp_path / "data/README.md").write_text("not data")
    (tmp_path / "data/.hidden.parquet").write_text("not data")
    for paths in (
        tmp_path / "data",
        tmp_path / f"data/part-*.{suffix}",
        [tmp_path / f"data/part-0.{suffix}", tmp_path / f"data/part-[12].{suffix}", tmp_path / "data"],
    ):
        _, inputs, _ = opened(paths, no_split, target="species", features=["height"])
        np.testing.assert_array_equal(inputs[:, 0], table["height"].to_numpy())


@pytest.mark.parametrize("suffix", FORMATS)
def test_any_file_system_by_url(tmp_path, no_split, suffix):
    import fsspec

    memory = fsspec.filesystem("memory")
    path = write(flowers(), tmp_path / f"t.{suffix}")
    memory.pipe_file(f"/flowers-{suffix}/t.{suffix}", path.read_bytes())
    for url in (
        f"memory://flowers-{suffix}/t.{suffix}",
        f"memory://flowers-{suffix}",
        f"memory://flowers-{suffix}/*",
    ):
        _, inputs, _ = opened(url, no_split, target="species", features=["height"])
        np.testing.assert_array_equal(inputs[:, 0], flowers()["height"].to_numpy())


def test_csv_as_people_write_it(tmp_path, no_split):
    text = '\ufeffname,size,y\r\n"a, ""quoted""\r\nover two lines",1,yes\r\n\r\nplain,2.5,no\r\n"",3e2,yes'
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    _, inputs, targets = opened(path, no_split, target="y", features=["size"])
    assert inputs[:, 0].tolist() == [1, 2.5, 300]
    assert targets.tolist() == [1, 0, 1]


def test_tabs_and_a_named_format(tmp_path, no_split):
    (tmp_path / "t.tsv").write_text("x\ty\n1\ta\n2\tb\n")
    (tmp_path / "t.txt").write_text("x,y\n1,a\n2,b\n")
    assert opened(tmp_path / "t.tsv", no_split, target="y")[1].tolist() == [[1], [2]]
    assert opened(tmp_path / "t.txt", no_split, target="y", format="csv")[1].tolist() == [[1], [2]]


def test_an_arrow_stream(tmp_path, no_split):
    with pa.ipc.new_stream(tmp_path / "t.arrow", flowers().schema) as writer:
        writer.write_table(flowers(), max_chunksize=7)
    _, inputs, _ = opened(tmp_path / "t.arrow", no_split, target="species", features=["height"])
    np.testing.assert_array_equal(inputs[:, 0], flowers()["height"].to_numpy())


def test_a_file_without_rows_among_others(tmp_path, no_split):
    write(flowers(0), tmp_path / "a.parquet")
    write(flowers(5), tmp_path / "b.parquet")
    assert opened(tmp_path, no_split, target="species", features=["height"])[1].shape == (5, 1)


def test_booleans_and_integers_of_any_width_are_numbers(tmp_path, no_split):
    table = pa.table(
        {
            "a": pa.array([1, 2], pa.int8()),
            "b": [True, False],
            "c": pa.array([1.5, 2.5], pa.float16()),
            "d": pa.array([3, 4], pa.decimal128(5, 1)),
            "when": pa.array([1, 2], pa.timestamp("s")),
            "y": [0, 1],
        }
    )
    signature, inputs, _ = opened(write(table, tmp_path / "t.parquet"), no_split, target="y")
    assert signature.feature_names == ("a", "b", "c", "d")
    assert inputs.tolist() == [[1, 1, 1.5, 3], [2, 0, 2.5, 4]]


def test_metadata_of_extension_types_is_never_evaluated(tmp_path, no_split):
    """CVE-2026-41486 was a pickle in a Parquet schema; here it is bytes that nobody looks at.

    Where `ray.data` was imported (in every worker) its types are known to pyarrow: it may refuse the file.
    """
    import os
    import pickle

    import ray.data  # noqa: F401 - registers its types

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evaluated"),)

    payload = pickle.dumps(Attack())
    for name in (b"arrow.py_extension_type", b"ray.data.arrow_tensor", b"ray.data.arrow_pickled_object"):
        metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": payload}
        field = pa.field("x", pa.float64(), metadata=metadata)
        table = pa.table(
            [pa.array([1.0, 2.0]), pa.array(["a", "b"])], schema=pa.schema([field, ("y", pa.string())])
        )
        for suffix in ("parquet", "arrow"):
            with contextlib.suppress(DataError):
                _, inputs, _ = opened(write(table, tmp_path / f"t.{suffix}"), no_split, target="y")
                assert inputs.tolist() == [[1], [2]]
    assert not (tmp_path / "evaluated").exists()
