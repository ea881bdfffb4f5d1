"""`evaluate` from a run's folder to the report: every task, and what cannot be judged."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from eagleray import data, models
from eagleray.errors import EvaluationError, InputError, PackageError
from eagleray.packaging import CheckpointStore, Folder, open_package, write_package
from eagleray.specs import EvaluateSpec
from eagleray.workflows import evaluation_files
from eagleray.workflows.evaluate import Evaluation, evaluate, main
from eagleray.workflows.finished import FinishedRun
from eagleray.workflows.run import runs
from support.runs import DIGITS, finish

RUN = "digits-20260131-120000-ab12"
USER_DATA = """
import numpy as np
def images(labels, only=None):
    from eagleray.data.digits import _read
    table = _read()
    table = table if only is None else table[table[:, -1] == only]
    inputs = table[:, :-1].astype(np.float32).reshape(-1, 1, 8, 8)
    return inputs, table[:, -1].astype(int), {"input_kind": "image", "labels": labels}
"""
SMALL = {"optimizer": {"kind": "adam", "lr": 0.01}, "training": {"steps": 20, "global_batch_size": 16}}
TEXT = {"kind": "stdlib_text", "sequence_length": 16, "max_mib": 0.03}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A storage with one finished digits run; MLflow (3 s) has a test of its own, with a real server."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EAGLERAY_HOME", str(folder))
        patch.delenv("EAGLERAY_STORAGE", raising=False)
        patch.setattr(evaluation_files, "_track", lambda *_: None)
        finish(DIGITS)
        yield folder


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """`main` listens for SIGTERM from then on; pytest's own way of ending comes back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _without_pictures(home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time; tests that look at them say so."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(evaluation_files, "draw", lambda *_, **__: ())


@pytest.fixture
def pictures() -> None:
    """Draw."""


def spec(ref: str = RUN, kind: str = "run", **fields: Any) -> EvaluateSpec:
    subject = {"kind": kind, "ref": ref, **fields.pop("model", {})}
    return EvaluateSpec.model_validate({"kind": "evaluate", "name": "try", "model": subject, **fields})


def judged(*arguments: Any, **fields: Any) -> Evaluation:
    return evaluate(spec(*arguments, **fields), lambda _: None)


def words(caught: pytest.ExceptionInfo[Any]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flower_run(tmp_path: Path, **fields: Any) -> Path:
    """A finished run on a table of two measures and a price."""
    path = tmp_path / "flowers.csv"
    rng = np.random.default_rng(0)
    width = rng.normal(3, 1, 200)
    lines = [f"{w:.4f},{h:.4f},{2 * w + h:.4f}" for w, h in zip(width, rng.normal(5, 2, 200), strict=True)]
    path.write_text("\n".join(["width,height,price", *lines]) + "\n")
    table = {"kind": "table", "paths": [str(path)], "target": "price", "target_kind": "value"}
    finish(
        {
            "kind": "train",
            "name": "flowers",
            "data": {**table, "normalize": "standard", **fields},
            "model": {"kind": "mlp", "hidden": [8]},
            "loss": {"kind": "mse"},
            **SMALL,
        }
    )
    return path


def test_digits_are_judged_as_the_run_saw_them() -> None:
    found = judged(batch_size=50)
    values = found.report.metrics.values
    run = FinishedRun.open(RUN)
    module = models.build(run.spec.model, run.signature).eval()
    module.load_state_dict(run.weights)
    part = data.open_dataset(run.spec.data).test  # normalised by the dataset, once
    assert part is not None
    arrays = part.fetch(np.arange(part.num_samples))
    with torch.no_grad():
        logits = module(torch.from_numpy(arrays.inputs))
    answers = logits.argmax(dim=1).numpy()
    assert values["accuracy"] == (answers == arrays.targets).mean()
    assert values["accuracy"] > 0.85
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(arrays.targets))
    assert values["log_loss"] == pytest.approx(float(expected), rel=1e-4)

    rows = pq.read_table(found.folder.local_path / "predictions.parquet").to_pydict()  # type: ignore[operator]
    assert rows["predicted"] == [str(answer) for answer in answers]
    assert rows["target"] == [str(target) for target in arrays.targets]
    assert rows["position"] == list(range(part.num_samples))
    assert set(rows["part"]) == {"test"}


@pytest.mark.usefixtures("pictures")
def test_the_folder_has_the_report_in_every_form() -> None:
    found = judged()
    names = set(found.folder.files())
    assert {"report.html", "report.json", "spec.json", "predictions.parquet", "confusion-matrix.png"} <= names
    document = found.folder.read_json("report.json")
    assert document["ids"]["run"] == RUN
    assert document["metrics"]["values"]["accuracy"] == found.report.metrics.values["accuracy"]
    assert document["judgement"]["verdict"] == found.report.judgement.verdict
    assert document["warnings"] == []
    assert document["train"]["num_samples"] == 200
    assert document["data"]["Samples"] == "191 of test"
    left = FinishedRun.open(RUN).folder.read_json("evaluation.json")
    assert left["metrics"]["test_accuracy"] == found.report.metrics.values["accuracy"]
    assert left["evaluation"] == found.report.evaluation_id


def test_the_size_of_a_batch_does_not_matter() -> None:
    one, other = (judged(batch_size=size).report.metrics.values for size in (7, 256))
    assert one == pytest.approx(other, abs=1e-6)
    assert one["accuracy"] == other["accuracy"]


def test_a_sample_of_the_part() -> None:
    found = judged(max_samples=40, part="train")
    assert found.report.metrics.num_samples == 40
    assert found.report.judgement.verdict == "unknown"
    positions = pq.read_table(found.folder.local_path / "predictions.parquet")["position"].to_pylist()  # type: ignore[operator]
    assert len(set(positions)) == 40
    assert max(positions) > 200


def test_the_newest_finished_run_of_a_name() -> None:
    finish({**DIGITS, "name": "many", "training": {"steps": 2}}, "many-20260101-000000-0001")
    finish({**DIGITS, "name": "many", "training": {"steps": 2}}, "many-20260102-000000-0002")
    finish({**DIGITS, "name": "many", "training": {"steps": 2}}, "many-20260103-000000-0003", status="FAILED")
    finish({**DIGITS, "name": "many-more", "training": {"steps": 2}}, "many-more-20260104-000000-0004")
    assert judged("many").report.ids["run"] == "many-20260102-000000-0002"


@pytest.mark.usefixtures("pictures")
def test_values(tmp_path: Path) -> None:
    flower_run(tmp_path)
    found = judged("flowers")
    assert found.report.metrics.task == "regression"
    assert [picture.name for picture in found.report.pictures] == ["predicted", "residuals", "curves"]
    rows = pq.read_table(found.folder.local_path / "predictions.parquet").to_pydict()  # type: ignore[operator]
    residuals = np.array(rows["predicted"]) - np.array(rows["target"])
    assert found.report.metrics.values["mae"] == pytest.approx(np.abs(residuals).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "loss", "has_bits"),
    [
        ({"kind": "gpt", "width": 16, "num_heads": 2, "num_layers": 1}, "next_token", True),
        ({"kind": "transformer", "width": 16, "num_heads": 2, "num_layers": 1}, "masked_token", False),
    ],
    ids=["next token", "masked token"],
)
def test_tokens(model: dict[str, Any], loss: str, has_bits: bool) -> None:
    finish(
        {
            "kind": "train",
            "name": loss.replace("_", "-"),
            "data": TEXT,
            "model": model,
            "loss": {"kind": loss},
            **SMALL,
        }
    )
    found = judged(loss.replace("_", "-"))
    values = found.report.metrics.values
    assert ("bits_per_byte" in values) == has_bits
    assert 1 < values["perplexity"] < 258
    assert "predictions.parquet" not in found.folder.files()


def test_text_with_a_class(tmp_path: Path) -> None:
    """Rows of text are tokenised by the dataset as the predictor does it for a request."""
    path = tmp_path / "words.jsonl"
    rows = [
        {"text": f"{'sun' if number % 2 else 'rain'} {number} é", "kind": number % 2} for number in range(120)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"features": ["text"], "target": "kind", "input_kind": "text", "sequence_length": 12}
    finish(
        {
            "kind": "train",
            "name": "words",
            "data": {"kind": "table", "paths": [str(path)], **columns},
            "model": {"kind": "gru", "hidden": 8, "embedding": 8},
            "loss": {"kind": "cross_entropy"},
            **SMALL,
        }
    )
    assert judged("words").report.metrics.values["accuracy"] == 1


def test_data_that_has_changed_is_warned_of(tmp_path: Path) -> None:
    path = flower_run(tmp_path)
    assert judged("flowers").report.warnings == ()
    path.write_text(path.read_text() + "1,1,3\n")
    (warning,) = judged("flowers").report.warnings
    assert warning.startswith("The data has changed since the model was trained on it (digest ")


def test_other_data_all_of_it(tmp_path: Path) -> None:
    path = flower_run(tmp_path)
    other = tmp_path / "other.csv"
    other.write_text("\n".join([path.read_text().splitlines()[0], "3,5,11", "2,4,8", "1,1,3", "2,2,6"]))
    table = {"kind": "table", "paths": [str(other)], "target": "price", "target_kind": "value"}
    found = judged("flowers", part="all", data={**table, "split": {"train": 1, "validation": 0, "test": 0}})
    assert found.report.metrics.num_samples == 4
    assert found.report.train is not None  # on the run's own data
    assert any(warning.startswith("This is not the dataset") for warning in found.report.warnings)
    path.unlink()
    found = judged("flowers", part="all", data={**table, "split": {"train": 1, "validation": 0, "test": 0}})
    assert found.report.train is None
    assert any("cannot be read" in warning for warning in found.report.warnings)
    assert found.report.judgement.verdict == "unknown"


def test_a_table_in_storage_is_walked_block_by_block(tmp_path: Path) -> None:
    flower_run(tmp_path, memory_budget_mib=0.02)
    assert judged("flowers").report.metrics.num_samples > 10
    assert judged("flowers", max_samples=6).report.metrics.num_samples == 6


@pytest.fixture
def user_data(tmp_path: Path) -> str:
    """A user's own module, and its path."""
    path = tmp_path / f"own_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(USER_DATA)
    return str(path)


def of_module(path: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": "module", "function": f"{Path(path).stem}:images", "arguments": arguments}


def test_labels_are_matched_by_name_or_refused(user_data: str) -> None:
    numbers = [str(number) for number in range(10)]
    own = judged().report.metrics.values["accuracy"]
    found = judged(code=[user_data], data=of_module(user_data, labels=numbers))
    assert found.report.metrics.values["accuracy"] == pytest.approx(own, abs=0.05)
    assert f"code/{Path(user_data).name}" in found.folder.files()
    with pytest.raises(InputError) as caught:
        judged(code=[user_data], data=of_module(user_data, labels=[*numbers[:9], "ten"]))
    assert "labels that the model does not know: 'ten'; the model's are '0', '1'" in words(caught)


@pytest.mark.usefixtures("pictures")
def test_one_class_only_is_judged_and_said(user_data: str) -> None:
    numbers = [str(number) for number in range(10)]
    found = judged(code=[user_data], part="all", data=of_module(user_data, labels=numbers, only=3))
    assert "roc_auc" not in found.report.metrics.values
    assert any("All samples are of one class ('3')" in note for note in found.report.metrics.notes)
    assert "roc.png" not in found.folder.files()


def test_a_part_that_was_not_held_out() -> None:
    split = {"train": 0.9, "validation": 0.1, "test": 0.0}
    finish({**DIGITS, "name": "no-test", "data": {**DIGITS["data"], "split": split}})
    with pytest.raises(InputError) as caught:
        judged("no-test")
    assert "data.split.test is 0, so nothing was held out as test" in words(caught)
    assert 'judge on part = "validation"' in words(caught)
    assert judged("no-test", part="validation").report.metrics.num_samples > 100


def test_weights_that_are_not_finite(home: Path) -> None:
    broken = finish({**DIGITS, "name": "broken", "training": {"steps": 1}})
    folder = runs().child(f"{broken.name}-20260131-120000-ab12")
    store = CheckpointStore(folder.child("checkpoints").url)
    newest = store.newest(print)
    assert newest is not None
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in newest.tensors("weights").items()}
    store.commit(2, attempt=1, tensors={"weights": weights}, state={})
    evaluations = home / "storage/evaluations"
    before = sorted(evaluations.iterdir())
    with pytest.raises(EvaluationError) as caught:
        judged("broken")
    assert "probabilities are NaN or infinite in 191 samples (first: sample 0)" in words(caught)
    assert sorted(evaluations.iterdir()) == before


def packaged(tmp_path: Path, of_run: str = RUN, **lineage: Any) -> str:
    """The run's package, whose card has its lineage changed; returns its address."""
    run = FinishedRun.open(of_run)
    card = run.card("digits")
    card = card.model_copy(update={"lineage": card.lineage.model_copy(update=lineage)})
    folder = Folder(tmp_path / "package")
    write_package(folder, card, run.weights, run.code)
    return folder.url


def test_a_package_by_its_address(tmp_path: Path) -> None:
    url = packaged(tmp_path)
    found = judged(url, "package")
    assert found.report.metrics.values == judged().report.metrics.values
    assert found.report.ids["package_digest"] == open_package(url).digest
    assert found.report.model["Package"] == url


def test_a_package_whose_run_is_gone_needs_data(tmp_path: Path) -> None:
    url = packaged(tmp_path, RUN, run_id="lost-20260131-120000-ab12")
    with pytest.raises(InputError) as caught:
        judged(url, "package")
    assert "made by run lost-20260131-120000-ab12, which is not in this storage" in words(caught)
    found = judged(url, "package", data={"kind": "digits"})
    assert found.report.judgement.verdict == "unknown"
    assert found.report.train is None


def test_a_package_with_code_needs_leave(tmp_path: Path) -> None:
    path = tmp_path / f"net_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(
        "from torch import nn\n"
        "def build(signature):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    model = {"kind": "module", "function": f"{path.stem}:build"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        finish({**DIGITS, "name": "own", "model": model, "code": [str(path)]})
    assert judged("own").report.metrics.values["accuracy"] > 0.8
    url = packaged(tmp_path, "own-20260131-120000-ab12")
    with pytest.raises(PackageError) as caught:
        judged(url, "package")
    assert "set model.allow_code = true" in words(caught)
    assert judged(url, "package", model={"allow_code": True}).report.metrics.values["accuracy"] > 0.8


def test_a_storage_that_takes_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = packaged(tmp_path)
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage/evaluations").write_text("not a folder")
    monkeypatch.setenv("EAGLERAY_STORAGE", str(tmp_path / "storage"))
    path = tmp_path / "spec.toml"
    path.write_text(
        'kind = "evaluate"\nname = "try"\ndata = { kind = "digits" }\n'
        f'[model]\nkind = "package"\nref = "{url}"\n'
    )
    assert main([str(path)]) == 1
    assert "error: the report cannot be written to " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["model.ref=nothing-here"], 2, "error: no run 'nothing-here' in "),
        (["model.ref=a/../b"], 2, "error: no run 'a/../b' in "),
        (["model.kind=package", "model.ref=/nowhere"], 1, "error: /nowhere: there is no model package"),
        (
            ["model.kind=package", "model.ref=odd://x"],
            2,
            "error: model.ref 'odd://x' is no address of a package",
        ),
        (["part=tset"], 2, "part: input should be"),
        (["model.name=x"], 2, "model.name: unknown key 'name'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], overrides: list[str], code: int, message: str
) -> None:
    path = str(Path(__file__).parents[3] / "examples/evaluate/digits.toml")
    arguments = [path]
    for override in overrides:
        arguments += ["--set", override]
    assert main(arguments) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_example_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(Path(__file__).parents[3] / "examples/evaluate/digits.toml")]) == 0
    printed = capsys.readouterr().out
    assert "Accuracy" in printed
    assert "class  precision  recall     F1  samples" in printed
    assert printed.strip().splitlines()[-1].endswith("/report.html")
