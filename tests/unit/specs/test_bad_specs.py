"""A bad spec gives one line per problem: the file, the dotted path, what was found, what to do."""

from __future__ import annotations

from pathlib import Path

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
            "scaling.xyz: unknown key 'xyz'; known keys here: budget, cpus_per_worker, gpus_per_worker",
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
            "compression.kind: input should be 'none', 'fp16', 'bf16', 'int8', ",
        ),
        ("compression.kind=a.py:b c", "compression.kind: input should be 'none', "),
        (
            "compression={kind='topk', momentum_correction=true}",
            "compression.momentum_correction: topk then has the momentum, so optimizer.betas[0] (0.9)",
        ),
        (
            "compression={kind='int8', momentum_correction=true}",
            "compression.momentum_correction: only topk uses it, and compression.kind is 'int8'; leave it",
        ),
        (
            "compression={kind='int8', rank=8}",
            "compression.rank: only powersgd and auto use it, and compression.kind is 'int8'; leave it out",
        ),
        ("compression={kind='bf16', fidelity='low'}", "compression.fidelity: only auto uses it, and"),
        (
            "compression={kind='powersgd', block_size=8}",
            "compression.block_size: only int8, int4, int8_ring, ",
        ),
        ("compression={kind='topk', ratio=0}", "compression.ratio: input should be greater than 0 (found 0)"),
        (
            "compression={kind='powersgd', rank=0}",
            "compression.rank: input should be greater than or equal to 1",
        ),
        (
            "compression={kind='int8', block_size=0}",
            "compression.block_size: input should be greater than or",
        ),
        ("compression={kind='int8', block_size=48}", "compression.block_size: 48 is not a power of two"),
        ("compression.max_skipped_steps=0", "compression.max_skipped_steps: input should be greater than or"),
        ("training.epochs=3", "training: give either steps or epochs"),
        ("scaling={spares=1, on_change='restart'}", "scaling: spares are of no use with on_change"),
        (
            "scaling={num_workers=2, min_workers=3}",
            "scaling: min_workers (3) is more than num_workers (2), the largest size; lower one or raise",
        ),
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
        ("training.steps=true", "training.steps: input should be a valid integer (found True)"),
        ('training.steps="40"', "training.steps: input should be a valid integer (found '40')"),
        ('optimizer.lr="0.5"', "optimizer.lr: input should be a valid number (found '0.5')"),
        ("optimizer.lr=true", "optimizer.lr: input should be a valid number (found True)"),
        ("optimizer.betas=[0.9, true]", "optimizer.betas.1: input should be a valid number (found True)"),
        ("data.augment.horizontal_flip=1", "data.augment.horizontal_flip: input should be true or false"),
        ('data.augment.horizontal_flip="yes"', "data.augment.horizontal_flip: input should be true or false"),
        ('model.channels=[8, "16"]', "model.channels.1: input should be a valid integer (found '16')"),
        ("model.channels=[0]", "model.channels.0: input should be greater than or equal to 1 (found 0)"),
        ("model.channels=[8, -4]", "model.channels.1: input should be greater than or equal to 1 (found -4)"),
        ("model={kind='mlp', hidden=[-1]}", "model.hidden.0: input should be greater than or equal to 1"),
        ("model={kind='mlp', hidden=[0]}", "model.hidden.0: input should be greater than or equal to 1"),
        (
            "schedule={kind='cosine', warmup_steps=4}",
            "schedule.warmup_steps: 4 exceeds training.steps (3), so the learning rate never gets there",
        ),
        ('code=["no*.py"]', "code.0: 'no*.py' matches nothing (looked for "),
    ],
)
def test_an_override_that_does_not_fit(good: Path, override: str, expected: str) -> None:
    found = message(good, override)
    assert found.startswith(expected)
    assert "\n" not in found


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=1",
        "training.steps=1e3",
        "schedule={kind='constant', warmup_steps=3}",
        "model={kind='mlp', hidden=[]}",
        "data.augment.horizontal_flip=true",
        'code=["sp*.toml"]',
    ],
)
def test_an_override_that_fits(good: Path, override: str) -> None:
    assert specs.load(specs.TrainSpec, good, [override]).kind == "train"


TABLE = "kind='table', paths=['*.csv'], target='y'"


@pytest.mark.parametrize(
    ("data", "loss", "expected"),
    [
        (TABLE, "cross_entropy", None),
        (f"{TABLE}, target_kind='value'", "mse", None),
        ("kind='table', paths=['*.csv'], input_kind='text', features=['t']", "next_token", None),
        (
            TABLE,
            "mse",
            "loss.kind: 'mse' does not fit, because data.target_kind is 'class'; use cross_entropy, or "
            'data.target_kind = "value"',
        ),
        (
            f"{TABLE}, target_kind='value'",
            "cross_entropy",
            "loss.kind: 'cross_entropy' does not fit, because data.target_kind is 'value'; use mse, or "
            'data.target_kind = "class"',
        ),
        (
            "kind='table', paths=['*.csv'], input_kind='text', features=['t']",
            "mse",
            "loss.kind: 'mse' does not fit, because data has no target; use next_token or masked_token",
        ),
        (
            f"{TABLE}, augment={{noise_std=0.1}}",
            "cross_entropy",
            "data.augment: is for images, and input_kind is 'tabular'; take the table out",
        ),
        (
            "kind='table', paths=['*.parquet'], target='y'",
            "cross_entropy",
            "data.paths.0: '*.parquet' matches nothing (looked for ",
        ),
        (
            f"{TABLE}, features=['x'], input_kind='image', input_shape=[1, 8, 0]",
            "cross_entropy",
            "data.input_shape.2: input should be greater than or equal to 1 (found 0)",
        ),
    ],
)
def test_a_table_and_its_loss(good: Path, data: str, loss: str, expected: str | None) -> None:
    (good.parent / "t.csv").write_text("x,y\n1,2\n")
    model = "gru" if "text" in data else "mlp"
    overrides = [f"data={{{data}}}", f"loss.kind={loss}", f"model.kind={model}"]
    if expected is None:
        assert specs.load(specs.TrainSpec, good, overrides).loss.kind == loss
        return
    found = message(good, *overrides)
    assert found.startswith(expected)
    assert "\n" not in found


def test_two_ports_that_are_one(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").touch()
    path = tmp_path / "local.toml"
    path.write_text('kind = "local"\ndashboard_port = 8265\n[serving]\nport = 8265\n')
    assert message(path) == (
        "dashboard_port: 8265 is serving.port as well; give each its own, or 0 for any free one"
    )
    for override in ("serving.enabled=false", "serving.port=8266"):
        assert specs.load(specs.LocalSpec, path, [override]).dashboard_port == 8265
    both = specs.load(specs.LocalSpec, path, ["serving.port=0", "dashboard_port=0"])
    assert both.dashboard_port == both.serving.port == 0


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


SGD = "optimizer={kind='sgd', lr=0.1, momentum=0.9}"


@pytest.mark.parametrize(
    ("compression", "expected"),
    [
        (
            "compression.kind=fourbit_adam",
            "compression.kind: 'fourbit_adam' sends Adam's momentum, and optimizer.kind is 'sgd'; use adam",
        ),
        (
            "compression={kind='topk', momentum_correction=true}",
            "compression.momentum_correction: topk then has the momentum, so optimizer.momentum (0.9)",
        ),
    ],
)
def test_a_compression_that_the_optimizer_cannot_take(good: Path, compression: str, expected: str) -> None:
    assert message(good, SGD, compression).startswith(expected)


def test_a_compression_that_the_precision_cannot_take(good: Path) -> None:
    said = message(good, "training.precision=float64", "compression.kind=int8")
    assert said.startswith(
        "compression.kind: 'int8' would round gradients that training.precision 'float64' makes; use none or "
    )
    for kind in ("none", "auto", "own:Kind"):
        specs.load(specs.TrainSpec, good, ["training.precision=float64", f"compression.kind={kind}"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["compression.kind=onebit_adam"],
        [SGD, "optimizer.momentum=0", "compression={kind='topk', momentum_correction=true}"],
        ["compression={kind='topk', momentum_correction=true}", "optimizer.betas=[0.0, 0.9]"],
    ],
)
def test_a_compression_that_it_can(good: Path, overrides: list[str]) -> None:
    assert specs.load(specs.TrainSpec, good, overrides).compression.kind in ("onebit_adam", "topk")


@pytest.mark.parametrize("kind", ["topk", "powersgd", "int8", "none", "auto", "mine:Own"])
@pytest.mark.parametrize(
    ("field", "kinds"),
    [
        ("ratio=0.5", "topk auto mine:Own"),
        ("rank=2", "powersgd auto mine:Own"),
        ("block_size=64", "int8 auto mine:Own"),
        ("warmup_steps=3", "topk powersgd auto mine:Own"),
        ("fidelity='low'", "auto mine:Own"),
        ("ratio=0.01", "topk powersgd int8 none auto mine:Own"),  # its default says nothing
        ("dense_below=5", "topk powersgd int8 none auto mine:Own"),
    ],
)
def test_a_field_of_the_compression_is_for_the_kinds_that_use_it(
    good: Path, kind: str, field: str, kinds: str
) -> None:
    override = f"compression={{kind='{kind}', {field}}}"
    if kind in kinds.split():
        assert specs.load(specs.TrainSpec, good, [override]).compression.kind == kind
    else:
        name = field.partition("=")[0]
        assert message(good, override).startswith(f"compression.{name}: only ")


@pytest.mark.parametrize(
    ("overrides", "remarks"),
    [
        ([SGD, "compression.kind=topk"], []),
        (["compression.kind=int4"], []),
        (["compression={kind='topk', momentum_correction=true}", "optimizer.betas=[0.0, 0.9]"], []),
        (["compression.kind=topk"], ["compression.kind: topk is made for SGD: adamw divides by"]),
        (["compression.kind=randomk"], ["compression.kind: randomk is made for SGD: adamw divides by"]),
    ],
)
def test_what_costs_accuracy_is_remarked_and_not_refused(
    good: Path, overrides: list[str], remarks: list[str]
) -> None:
    found = specs.load(specs.TrainSpec, good, overrides).remarks()
    assert len(found) == len(remarks)
    assert all(text.startswith(beginning) for text, beginning in zip(found, remarks, strict=True))
