"""`python -m eagleray.workflows.evaluate SPEC [--set a.b=c]`: one model judged on data; needs no cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eagleray.workflows.stopping import stoppable

if TYPE_CHECKING:
    from pathlib import Path

    from eagleray.evaluation import Report
    from eagleray.packaging import Folder
    from eagleray.specs import EvaluateSpec


@dataclass(frozen=True)
class Evaluation:
    """What was found, and where it lies."""

    report: Report
    folder: Folder


def evaluate(spec: EvaluateSpec, say: Callable[[str], None] = print) -> Evaluation:
    """Judge the model that `spec` names; writes `<storage>/evaluations/<id>/` and tells MLflow.

        report.html, report.json, *.png       for people, and for programs
        predictions.parquet                   target and answer of each sample (not of tokens)
        spec.json, code/                      what was asked

    Raises:
        InputError: there is no such model, or its data does not fit it; nothing is written then.
        EvaluationError: the model's outputs are not finite.
        EaglerayError: files are damaged, or a service does not answer.
    """
    import time
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from eagleray.cluster import settings
    from eagleray.packaging import Folder
    from eagleray.training.code import import_code, store_code
    from eagleray.workflows.candidate import open_candidate
    from eagleray.workflows.evaluation_files import publish, write
    from eagleray.workflows.examination import examine
    from eagleray.workflows.run import new_id

    evaluation_id, created_at = new_id(spec.name), time.time()
    folder = Folder(settings.storage_url()).child("evaluations").child(evaluation_id)
    with TemporaryDirectory(prefix="eagleray-") as name:
        scratch, made = Path(name), Path(name, "evaluation")
        made.mkdir()
        store_code(spec.code, Folder(made))
        import_code(Folder(made))
        candidate = open_candidate(spec.model, scratch, say)
        say(f"evaluation {evaluation_id}: {candidate.name}")
        examination = examine(spec, candidate, say)
        report = write(examination, made, evaluation_id, created_at)
        _upload(made, folder)
        publish(report, examination, made, folder, say)
    return Evaluation(report, folder)


def _upload(made: Path, folder: Folder) -> None:
    """Every file that was made, report.json last. Raises: EaglerayError where the storage refuses."""
    from eagleray.errors import EaglerayError

    files = [path for path in made.rglob("*") if path.is_file()]
    try:
        for path in sorted(files, key=lambda path: (path.name == "report.json", path)):
            folder.upload(path, path.relative_to(made).as_posix())
    except OSError as error:
        raise EaglerayError(
            f"the report cannot be written to {folder.url}: {error.strerror or error}; make room there, or "
            "give the right to write"
        ) from error


@stoppable
def main(argv: Sequence[str] | None = None) -> int:
    """Judge as the spec in `argv` says; returns the exit code (0 done, 1 failed, 2 bad input)."""
    import argparse

    from eagleray.errors import EaglerayError
    from eagleray.specs import EvaluateSpec, load

    parser = argparse.ArgumentParser(prog="evaluate", description="Judge the model that SPEC names.")
    parser.add_argument("spec", help="TOML file, for instance examples/evaluate/digits.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    arguments = parser.parse_args(argv)
    try:
        found = evaluate(load(EvaluateSpec, arguments.spec, arguments.overrides), _say)
    except EaglerayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    for line in summary(found):
        _say(line)
    return 0


def summary(found: Evaluation) -> list[str]:
    """The last lines of the log."""
    from eagleray.evaluation import lines

    return [*lines(found.report), f"report {found.folder.url}/report.html"]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
