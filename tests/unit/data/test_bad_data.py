"""What is wrong with data is said in one line: the file, the column, what was found, what to do."""

import numpy as np
import pyarrow as pa
import pytest

from eagleray.data import open_dataset
from eagleray.errors import DataError
from unit.data.conftest import flowers, make_spec, write

FORMATS = ["parquet", "csv", "arrow", "jsonl"]


def refused(**fields):
    """The message of a table that cannot be opened."""
    fields.setdefault("target", "species")
    with pytest.raises(DataError) as caught:
        open_dataset(make_spec(**fields))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_column_names_the_nearest(tmp_path, suffix):
    path = write(flowers(), tmp_path / f"t.{suffix}")
    message = refused(paths=path, target="specie")
    assert message == f"{path}: column 'specie' is missing; did you mean 'species'?"
    assert "it has: width, height, species, price" in refused(paths=path, features=["zzz"])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_wrong_dtype(tmp_path, suffix):
    path = write(flowers(), tmp_path / f"t.{suffix}")
    message = refused(paths=path, features=["species"], target="height")
    assert "column 'species' is string" in message
    assert "needs a number column" in message
    message = refused(paths=path, target="species", target_kind="value")
    assert "column 'species' is string" in message
    message = refused(paths=path, features=["width"], input_kind="text", target=None)
    assert "needs a text column" in message
    message = refused(paths=path, target="width")
    assert "target 'width' has values such as" in message
    assert 'data.target_kind = "value"' in message


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_in_the_file(tmp_path, suffix):
    (tmp_path / f"t.{suffix}").touch()
    assert "is empty (0 bytes)" in refused(paths=tmp_path / f"t.{suffix}")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_no_rows(tmp_path, suffix):
    path = write(flowers(0), tmp_path / f"t.{suffix}")
    assert refused(paths=path, features=["width"]) == f"{path}: no rows; write the data again"
    write(flowers(0), tmp_path / f"u.{suffix}")
    assert "no rows (in 2 files); " in refused(paths=tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("target_kind", ["class", "value"])
def test_labels_that_are_missing_are_counted(tmp_path, suffix, target_kind):
    names, numbers = ["a", "b", "a", "a", None, "b"], [0.5, 0.5, 1, 1.5, None, 2.5]
    table = pa.table({"x": np.arange(6.0), "y": names if target_kind == "class" else numbers})
    path = write(table, tmp_path / f"t.{suffix}")
    message = refused(paths=path, target="y", target_kind=target_kind)
    assert message.startswith(f"{path}: target 'y': 1 rows have no value (NaN or null; first: row 4)")


def test_missing_labels_are_counted_over_all_files(tmp_path):
    for index in range(3):
        table = pa.table({"x": [1.0, 2, 3], "y": pa.array([0, None, float("nan")] if index else [0.0, 1, 0])})
        write(table, tmp_path / f"{index}.parquet")
    message = refused(paths=tmp_path, target="y")
    assert message.startswith(f"{tmp_path}/1.parquet: target 'y': 4 rows have no value")
    assert "first: row 1" in message


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 1e300])
def test_features_that_are_not_finite(tmp_path, suffix, value):
    if suffix == "jsonl":
        value = 1e300 if value == 1e300 else None  # JSON has no other
    table = pa.table({"x": [1.0, 2, 3, value, 5], "y": [0, 1, 0, 1, 0]})
    message = refused(paths=write(table, tmp_path / f"t.{suffix}"), target="y")
    assert "column 'x': NaN, null or infinite in 1 of the rows 0 to 4 (first: row 3)" in message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([float("nan"), 1.0], "NaN, null or infinite in 1 of the rows 0 to 39 (first: row 7)"),
        ([None, 1.0], "NaN, null or infinite in 1 of the rows 0 to 39 (first: row 7)"),
        ([1e300, 1.0], "(first: row 7); fill or drop them (float32 holds up to 3.4e38)"),
        ([], "row 7 has 0 values, and the first row 2"),
        (None, "1 rows have no value (NaN or null; first: row 7)"),
    ],
)
def test_a_list_target_that_is_no_value(tmp_path, suffix, bad, said):
    targets = [[0.5, 1.0] for _ in range(40)]
    targets[7] = bad
    path = write(pa.table({"x": np.arange(40.0), "y": targets}), tmp_path / f"t.{suffix}")
    message = refused(paths=path, target="y", target_kind="value")
    assert message.startswith(f"{path}: ")
    assert "'y'" in message
    assert said in message


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl"])
def test_a_list_target_of_nothing(tmp_path, suffix):
    table = pa.table({"x": [1.0, 2], "y": pa.array([[], []], pa.list_(pa.float64()))})
    path = write(table, tmp_path / f"t.{suffix}")
    if suffix == "jsonl":  # whose lists have no type while all are empty
        assert "list<item: null>" in refused(paths=path, target="y", target_kind="value")
        return
    message = refused(paths=path, target="y", target_kind="value")
    assert message.startswith(f"{path}: column 'y': row 0 is an empty list")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e300])
def test_a_value_target_that_is_not_finite(tmp_path, suffix, value):
    value = 1e300 if suffix == "jsonl" else value
    path = write(pa.table({"x": [1.0, 2, 3], "y": [0.5, 1.0, value]}), tmp_path / f"t.{suffix}")
    message = refused(paths=path, target="y", target_kind="value")
    assert "column 'y': NaN, null or infinite in 1 of the rows 0 to 2 (first: row 2)" in message


@pytest.mark.parametrize("first_bad", [0, 50, 99])
def test_a_csv_column_of_numbers_with_text_in_it(tmp_path, first_bad):
    bad = [str(row) if row != first_bad else "n/k" for row in range(100)]
    path = tmp_path / "t.csv"
    path.write_text("a,x,y\n" + "".join(f"1.5,{value},{row % 2}\n" for row, value in enumerate(bad)))
    message = refused(paths=path, target="y")
    assert message == (
        f"{path}: column 'x' has numbers, but row {first_bad} has 'n/k'; mend it, or list the columns to "
        "train on in data.features"
    )
    assert open_dataset(make_spec(paths=path, target="y", features=["a"])).signature.feature_names == ("a",)


@pytest.mark.parametrize("features", [[], ["x"], ["x", "a"]])
def test_a_csv_column_with_text_after_its_first_block(tmp_path, features):
    path = tmp_path / "t.csv"
    rows = [f"1.5,{row if row < 5000 else 'abc'},{row % 2}\n" for row in range(6000)]
    path.write_text("a,x,y\n" + "".join(rows))
    message = refused(paths=path, target="y", features=features, memory_budget_mib=0.5)
    assert message.startswith(f"{path}: column 'x': row 5000 has 'abc', not a number; mend or drop such rows")


def test_a_csv_column_that_is_text_from_some_row_on(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"1.5,{row if row < 50 else 'abc'},name {row},{row % 2}\n" for row in range(400)]
    path.write_text("a,x,name,y\n" + "".join(rows))
    assert "column 'x' has numbers, but row 50 has 'abc'" in refused(paths=path, target="y")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "other"])
def test_a_damaged_file(tmp_path, suffix, damage):
    path = write(flowers(500), tmp_path / f"t.{suffix}")
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "zeros": content[:6] + bytes(len(content) - 6),
            "other": b"GIF89a" * 50,
        }[damage]
    )
    message = refused(paths=path)
    assert message.startswith(f"{path}: cannot be read as {suffix}: ")
    assert "data.format" in message


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("csv", "x,y\n1,2\n1,2,3\n"),
        ("csv", "x,y\n1,a\nabc,b\n"),
        ("jsonl", '{"x": 1, "y": "a"}\n{"x": 2, "y"\n'),
        ("jsonl", '{"x": 1, "y": "a"}\n{"x": "abc", "y": "b"}\n'),
        ("jsonl", "[1, 2]\n"),
        ("csv", "\x00\xff" * 30),
    ],
)
def test_lines_that_do_not_parse(tmp_path, suffix, text):
    path = tmp_path / f"t.{suffix}"
    path.write_text(text, encoding="latin-1")
    assert refused(paths=path, target="y", features=["x"]).startswith(f"{path}: ")


def test_files_of_other_schemas(tmp_path):
    write(pa.table({"x": [1.0], "y": [0]}), tmp_path / "a.parquet")
    write(pa.table({"z": [1.0], "y": [0]}), tmp_path / "b.parquet")
    message = refused(paths=tmp_path, target="y")
    assert message.startswith(f"{tmp_path}/b.parquet: column 'x' (which {tmp_path}/a.parquet has) is missing")
    write(pa.table({"x": [1.0], "y": ["b"]}), tmp_path / "b.parquet")
    message = refused(paths=tmp_path, target="y")
    assert message.startswith(f"{tmp_path}/b.parquet: column 'y' is text, and number in {tmp_path}/a.parquet")


def test_csv_files_with_numbers_and_names_as_classes(tmp_path, no_split):
    (tmp_path / "a.csv").write_text("x,y\n1,1.0\n2,2.0\n")
    (tmp_path / "b.csv").write_text("x,y\n1,1\n2,3\n")
    dataset = open_dataset(make_spec(paths=tmp_path, target="y", split=no_split))
    assert dataset.signature.labels == ("1", "2", "3")
    assert dataset.train.fetch(np.arange(4)).targets.tolist() == [0, 1, 0, 2]
    (tmp_path / "b.csv").write_text("x,y\n1,one\n2,3\n")
    assert "numbers in one file and text such as 'one' in another" in refused(paths=tmp_path, target="y")


def test_files_of_other_formats(tmp_path):
    for suffix in ("csv", "parquet"):
        write(flowers(), tmp_path / f"t.{suffix}")
    message = refused(paths=tmp_path)
    assert "t.csv is csv" in message
    assert "t.parquet is parquet" in message


@pytest.mark.parametrize("path", ["nothing.csv", "nothing/", "no*.parquet", "memory://nowhere/x.csv"])
def test_no_such_file(tmp_path, path):
    full = path if "://" in path else f"{tmp_path}/{path}"
    assert "no such file, folder or match" in refused(paths=full)


def test_a_folder_without_data_and_an_unknown_ending(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "no file of a known format" in refused(paths=tmp_path)
    assert "give data.format" in refused(paths=tmp_path / "notes.txt")


@pytest.mark.parametrize("url", ["nosuch://bucket/x.csv", "hdfs://localhost:1/x.csv"])
def test_a_file_system_that_does_not_answer(url):
    assert refused(paths=url).startswith(url)


def test_a_part_of_the_split_that_stays_empty(tmp_path):
    path = write(flowers(3), tmp_path / "t.parquet")
    message = refused(paths=path, features=["width"], split={"train": 0.98, "validation": 0.01, "test": 0.01})
    assert "data.split.validation = 0.01 of 3 samples leaves none" in message


def test_images_of_another_size(tmp_path):
    table = pa.table({"p": [[1.0] * 12, [1.0] * 12, [1.0] * 11], "y": [0, 1, 0]})
    path = write(table, tmp_path / "t.parquet")
    fields = {"paths": path, "input_kind": "image", "features": ["p"], "target": "y"}
    message = refused(**fields, input_shape=[3, 2, 2])
    assert "1 rows do not have 12 values (3x2x2, from data.input_shape), first row 2 with 11" in message
    table = pa.table({"p": [[1.0], None], "y": [0, 1]})
    fields["paths"] = write(table, tmp_path / "n.parquet")
    assert "1 rows are null, first row 1" in refused(**fields, input_shape=[1, 1, 1])
    table = pa.table({"p": [[1.0, None], [1.0, 2.0]], "y": [0, 1]})
    fields["paths"] = write(table, tmp_path / "m.parquet")
    assert "(first: row 0)" in refused(**fields, input_shape=[1, 1, 2])


def test_clips_of_another_length(tmp_path):
    path = write(pa.table({"p": [[0.5] * 4, [0.5] * 3], "y": [0, 1]}), tmp_path / "t.parquet")
    fields = {"input_kind": "audio", "features": ["p"], "sample_rate_hz": 8000}
    message = refused(paths=path, target="y", **fields)
    assert "first row 1 with 3" in message
    assert "the first clip" in message


def test_tokens_outside_the_vocabulary(tmp_path):
    path = write(pa.table({"t": [[1, 2], [], [3, 10, -1]]}), tmp_path / "t.parquet")
    fields = {"input_kind": "tokens", "features": ["t"], "vocabulary_size": 10, "target": None}
    message = refused(paths=path, **fields)
    assert "2 tokens are not in 0..9, first 10 in row 2" in message


def test_no_numeric_column(tmp_path):
    path = write(pa.table({"a": ["x", "y"], "species": ["p", "q"]}), tmp_path / "t.parquet")
    message = refused(paths=path)
    assert "no numeric column besides the target; it has a (string), species (string)" in message


def test_one_class_only(tmp_path):
    path = write(pa.table({"x": [1.0, 2], "species": ["p", "p"]}), tmp_path / "t.parquet")
    assert "has one class only ('p')" in refused(paths=path)


def test_a_column_of_nothing(tmp_path):
    path = write(pa.table({"x": [1.0, 2], "species": pa.nulls(2)}), tmp_path / "t.parquet")
    assert "nothing but nulls" in refused(paths=path)
    path = write(pa.table({"x": [1.0, 2], "species": pa.nulls(2)}), tmp_path / "t.csv")
    assert "2 rows have no value" in refused(paths=path)


def test_normalising_text(tmp_path):
    path = write(pa.table({"t": ["a", "b"]}), tmp_path / "t.parquet")
    message = refused(paths=path, input_kind="text", features=["t"], target=None, normalize="standard")
    assert "data.normalize" in message
