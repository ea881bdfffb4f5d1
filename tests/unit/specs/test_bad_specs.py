"""A bad spec gives one line per problem: the file, the dotted path, what was found, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray import specs
from eagleray.errors import SpecError

KINDS = ", ".join(sorted(specs.FileSpec.registry))
GOOD = """\
kind = "train"
name = "t"
[data]
kind = "digits"
[model]
kind = "cnn"
[loss]
kind = "cross_entropy"
[optimizer]
kind = "adamw"
lr = 0.01
[training]
steps = 3
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(GOOD)
    return path


def message(path: Path, *overrides: str) -> str:
    """The error without the file's name, which must come first."""
    with pytest.raises(SpecError) as caught:
        specs.load_any(path, overrides)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert all(line.startswith((f"{path}: ", "--set ")) for line in text.splitlines())
    return text.removeprefix(f"{path}: ")


def test_the_good_one_loads(good: Path) -> None:
    spec = specs.load(specs.TrainSpec, good)
    assert (spec.name, spec.training.steps, spec.optimizer.lr) == ("t", 3, 0.01)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key 'lrr'; did you mean 'lr'?"),
        ("trainin.steps=1", "trainin: unknown key 'trainin'; did you mean 'training'?"),
        ("data.split.tests=0.5", "data.split.tests: unknown key 'tests'; did you mean 'test'?"),
        (
            "scaling.xyz=1",
            "scaling.xyz: unknown key 'xyz'; known keys here: cpus_per_worker, gpus_per_worker",
        ),
        ("optimizer.lr=fast", "optimizer.lr: input should be a valid number"),
        ("optimizer=3", "optimizer: input should be a table (found 3)"),
        ("scaling.label_selector=3", "scaling.label_selector: input should be a table (found 3)"),
        ("code=mine.py", "code: input should be a list (found 'mine.py')"),
        ("model.channels=[]", "model.channels: list should have at least 1 item"),
        ("optimizer.lr=-1", "optimizer.lr: input should be greater than 0 (found -1)"),
        ("training.global_batch_size=1.5", "training.global_batch_size: input should be a valid integer"),
        ("model.kind=ccn", "model: kind 'ccn' is not known; did you mean 'cnn'?"),
        (
            "model.kind=zzz",
            "model: kind 'zzz' is not known; write one of: cnn, gpt, gru, lstm, mlp, module, rnn",
        ),
        ("model={}", "model: has no `kind`; write one of: cnn, gpt, gru"),
        ("model=3", "model: "),
        (
            "compression.kind=bf15",
            "compression.kind: input should be 'none', 'fp16' or 'bf16' (found 'bf15')",
        ),
        ("training.epochs=3", "training: give either steps or epochs"),
        ("data.split.train=0.5", "data.split: train + validation + test is 0.7; make it 1"),
        ("loss.kind=next_token", "digits have class targets; loss.kind 'next_token' does not fit"),
        ("completion.prompt=def", "completion needs model.kind = \"gpt\", not 'cnn'"),
        ('code=["nowhere.py"]', "code.0: 'nowhere.py' does not exist (looked for "),
        ("name=Bad Name", "name: string should match pattern"),
        ("checkpoint.keep=1", "checkpoint.keep: input should be greater than or equal to 2 (found 1)"),
        ("kind=trian", f"kind: 'trian' is not known; write one of: {KINDS}"),
        ("kind=[1]", "kind: [1] is not known"),
        ("optimizer", "--set optimizer: expected a.b=value"),
        ("=3", "--set =3: expected a.b=value"),
        ("name.x=3", "--set name.x=3: name is a value, not a table"),
        ("optimizer.lr.x=3", "--set optimizer.lr.x=3: optimizer.lr is a value, not a table"),
    ],
)
def test_an_override_that_does_not_fit(good: Path, override: str, expected: str) -> None:
    found = message(good, override)
    assert found.startswith(expected)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", f"kind: is required and missing; write one of: {KINDS}"),
        (b"[data]\nkind = 'digits'\n", "kind: is required and missing"),
        (b"kind = \n", "not valid TOML: "),
        (b"[a\n", "not valid TOML: "),
        (b"\xff\xfe\x00", "not UTF-8 text (byte 0); a spec is a TOML file"),
        (b"kind = 'local'\nmax_nodes = 2\n", "cluster_file: 'cluster.yaml' does not exist"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "spec.toml"
    path.write_bytes(content)
    assert message(path).startswith(expected)


@pytest.mark.parametrize(("content", "expected"), [("{", "not valid JSON"), ("[1]", "not a spec but a list")])
def test_a_resolved_spec_that_is_damaged(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(content)
    assert message(path).startswith(expected)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    assert message(tmp_path / "none.toml").startswith("no such file; give the path of a TOML spec")
    assert message(tmp_path).startswith("is a directory")


def test_every_missing_table_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('kind = "train"\nname = "t"\n')
    missing = [line.split(": ")[1] for line in (f"{path}: {message(path)}").splitlines()]
    assert missing == ["data", "model", "loss", "optimizer", "training"]


def test_min_above_max_names_both(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").touch()
    path = tmp_path / "local.toml"
    path.write_text('kind = "local"\nmax_nodes = 2\n[node_types.cpu]\nmax_workers = 5\n')
    assert message(path) == (
        "node_types.cpu.max_workers (5) exceeds max_nodes (2); lower one or raise the other"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=0.5", {"a": {"b": 0.5}}),
        ("a=plain text", {"a": "plain text"}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a="1"', {"a": "1"}),
        ("a=true", {"a": True}),
        ("a=x=y", {"a": "x=y"}),
    ],
)
def test_set_takes_toml_or_else_text(override: str, expected: dict[str, Any]) -> None:
    table: dict[str, Any] = {}
    specs.apply_override(table, override)
    assert table == expected


def test_paths_are_relative_to_the_spec(good: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    spec = specs.load(specs.TrainSpec, good, ['code=["mine.py"]'])
    assert spec.code == (str(tmp_path / "mine.py"),)


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_numbers_are_finite(value):
    with pytest.raises(SpecError, match=r"optimizer\.lr: .*finite"):
        specs.load(
            specs.TrainSpec,
            Path(__file__).parents[3] / "examples/train/digits.toml",
            [f"optimizer.lr={value}"],
        )


def test_a_spec_of_another_kind_is_one_line():
    with pytest.raises(SpecError) as caught:
        specs.load(specs.LocalSpec, Path(__file__).parents[3] / "examples/train/digits.toml")
    assert str(caught.value).endswith("digits.toml: kind: is a train spec; give a local spec here")
