"""What an evaluation leaves behind: its files, a line in the run's folder, a run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eagleray.cluster import settings
from eagleray.errors import EaglerayError
from eagleray.evaluation import Language, Report, draw, html
from eagleray.packaging import Folder
from eagleray.specs import ModelCard
from eagleray.workflows.candidate import Candidate
from eagleray.workflows.examination import Examination
from eagleray.workflows.judging import Judged
from eagleray.workflows.run import EXPERIMENT

SUMMARY = "evaluation.json"
"""In the run's folder: what evaluations of its weights found on the parts that it held out."""
_MAX_VALUES = 50
"""Predictions of more values than that are not listed."""


def write(examination: Examination, folder: Path, evaluation_id: str, created_at: float) -> Report:
    """Write the files of an evaluation into `folder`; returns the report."""
    judged = examination.judged
    report = Report(
        evaluation_id=evaluation_id,
        created_at=created_at,
        model=_model_words(examination),
        data=_data_words(examination),
        ids=_ids(examination),
        part=examination.spec.part,
        metrics=judged.metrics,
        train=None if examination.train is None else examination.train.metrics,
        judgement=examination.judgement,
        warnings=examination.warnings,
        pictures=draw(
            judged.metrics,
            folder,
            targets=judged.targets,
            outputs=judged.outputs,
            history=examination.history,
        ),
    )
    (folder / "report.html").write_text(html(report), encoding="utf-8")
    _write_predictions(examination, folder / "predictions.parquet")
    (folder / "spec.json").write_text(examination.spec.model_dump_json(indent=2) + "\n")
    document = json.dumps(report.to_json(), indent=2, allow_nan=False)
    (folder / "report.json").write_text(document + "\n", encoding="utf-8")
    return report


def publish(
    report: Report, examination: Examination, made: Path, folder: Folder, say: Callable[[str], None]
) -> None:
    """Tell the run's folder, MLflow and the registry. What fails is said: the report stays as it is."""
    spec, candidate = examination.spec, examination.candidate
    is_own = spec.data is None and spec.max_samples is None
    prefix = f"{spec.part}_" if is_own else f"{spec.name}.{spec.part}_"  # other data takes no metric's place
    metrics = {f"{prefix}{name}": value for name, value in report.metrics.values.items()}
    if is_own and spec.part != "train" and spec.model.kind == "run" and candidate.origin is not None:
        _remember(candidate.origin.folder, {"evaluation": report.evaluation_id, "url": folder.url}, metrics)
    _track(report, candidate, metrics, made, say)
    if candidate.version is not None:
        from eagleray.registry.models import MlflowModels

        try:
            store = MlflowModels(settings.tracking_uri(), settings.storage_url())
            store.add_metrics(candidate.version, metrics, evaluation=report.evaluation_id)
        except EaglerayError as error:
            say(f"the metrics are not in the registry: {error}")


def _remember(run: Folder, newest: dict[str, Any], metrics: Mapping[str, float]) -> None:
    """Lay the metrics over those of earlier evaluations, of the other part for instance."""
    earlier = run.read_json(SUMMARY)["metrics"] if run.exists(SUMMARY) else {}
    run.write_json(SUMMARY, {**newest, "metrics": {**earlier, **metrics}})


def _track(
    report: Report,
    candidate: Candidate,
    metrics: Mapping[str, float],
    made: Path,
    say: Callable[[str], None],
) -> None:
    """An MLflow run of the evaluation, below that of the training run."""
    from eagleray.registry.tracking import Tracker

    tags = {"eagleray.kind": "evaluate", "eagleray.evaluation": report.evaluation_id}
    tags |= {f"eagleray.{name}": value for name, value in report.ids.items() if name != "run"}
    tags["eagleray.judgement"] = report.judgement.verdict
    origin = candidate.origin
    if origin is not None:
        tags["eagleray.of_run"] = origin.run_id
        if origin.folder.exists("mlflow.json"):
            tags["mlflow.parentRunId"] = str(origin.folder.read_json("mlflow.json")["run_id"])
    tracker = Tracker(
        settings.tracking_uri(),
        EXPERIMENT,
        artifact_root=f"{settings.storage_url()}/mlflow-artifacts",
        warn=say,
    )
    tracker.start(report.evaluation_id, params={"model": report.name, "part": report.part}, tags=tags)
    tracker.log(metrics, 0)
    for path in sorted(path for path in made.iterdir() if path.is_file()):
        tracker.artifact(path)
    for trouble in tracker.finish("FINISHED"):
        say(f"MLflow: {trouble}")


def _model_words(examination: Examination) -> dict[str, str]:
    candidate = examination.candidate
    package, card = candidate.package, candidate.package.card
    words = {"Model": candidate.name}
    if candidate.version is not None and candidate.version.aliases:
        words["Aliases"] = ", ".join(candidate.version.aliases)
    words["Architecture"] = f"{_architecture(card)}, {examination.num_parameters:,} parameters"
    words["Run"] = card.lineage.run_id
    words["Gradients"] = card.lineage.compression
    if card.lineage.search:
        words["Search"] = card.lineage.search
    if card.lineage.parent:
        words["Made from"] = card.lineage.parent
    if card.lineage.optimization:
        words["Optimisation"] = ", ".join(card.lineage.optimization)
    words["Code"] = card.lineage.code_version
    if examination.spec.model.kind != "run":  # that of a run was made for this evaluation, and is gone
        words |= {"Package": package.url, "Package digest": package.digest}
    return words


def _architecture(card: ModelCard) -> str:
    architecture = card.architecture
    return architecture.spec.kind if architecture.is_registered else architecture.function


def _data_words(examination: Examination) -> dict[str, str]:
    spec, lineage = examination.data_spec, examination.candidate.package.card.lineage
    split, metrics = spec.split, examination.judged.metrics
    words = {
        "Dataset": _dataset(spec.model_dump(mode="json")),
        "Samples": ", ".join(f"{size:,} of {name}" for name, size in examination.sizes.items()),
        **({"Tokens": f"{metrics.num_tokens:,}"} if isinstance(metrics, Language) else {}),
        "Split": f"train {split.train:g}, validation {split.validation:g}, test {split.test:g}, "
        f"seed {spec.split_seed}",
        "Digest": examination.digest,
    }
    if lineage.dataset_digest != examination.digest:
        words["Trained on"] = lineage.dataset_digest
    return words


def _dataset(spec: dict[str, Any]) -> str:
    if spec["kind"] == "table":
        return ", ".join(spec["paths"])
    return f"{spec['function']}({spec['arguments']})" if spec["kind"] == "module" else spec["kind"]


def _ids(examination: Examination) -> dict[str, str]:
    candidate = examination.candidate
    ids = {"run": candidate.package.card.lineage.run_id, "dataset_digest": examination.digest}
    if candidate.version is not None:
        ids["version"] = candidate.version.ref
    if examination.spec.model.kind != "run":
        ids |= {"package_url": candidate.package.url, "package_digest": candidate.package.digest}
    return ids


def _write_predictions(examination: Examination, path: Path) -> None:
    columns = dict(_columns(examination.judged, examination.candidate.package.card))
    if not columns:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [name for name, size in examination.sizes.items() for _ in range(size)]
    pq.write_table(pa.table({"part": parts, "position": examination.judged.positions, **columns}), path)


def _columns(judged: Judged, card: ModelCard) -> Iterator[tuple[str, Any]]:
    """Target and answer of each sample; nothing where they are tokens."""
    if judged.targets is None or judged.outputs is None:
        return
    if judged.predicted is not None:
        labels = card.signature.labels or tuple(map(str, range(judged.outputs.shape[1])))
        yield "target", [labels[index] for index in judged.targets]
        yield "predicted", [labels[index] for index in judged.predicted]
        yield "probability", judged.outputs[range(len(judged.predicted)), judged.predicted]
    elif judged.targets.shape[1] <= _MAX_VALUES:
        for number in range(judged.targets.shape[1]):
            suffix = "" if judged.targets.shape[1] == 1 else f"_{number}"
            yield f"target{suffix}", judged.targets[:, number]
            yield f"predicted{suffix}", judged.outputs[:, number]
