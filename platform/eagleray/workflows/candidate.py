"""What an evaluation judges: a package, and the run that made it where the storage still has it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eagleray.errors import InputError, PackageError
from eagleray.packaging import Folder, ModelPackage, ModelVersion, open_package, write_package
from eagleray.specs import TrainSpec
from eagleray.specs.evaluate import Subject
from eagleray.workflows.finished import FinishedRun
from eagleray.workflows.publish import models
from eagleray.workflows.run import existing, runs, saved_spec

_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4}")


@dataclass(frozen=True)
class Origin:
    """The run that made a model."""

    run_id: str
    folder: Folder
    spec: TrainSpec


@dataclass(frozen=True)
class Candidate:
    """A model to judge."""

    name: str
    """For instance "run digits-20260131-120000-1f2e", or "digits/versions/3"."""
    package: ModelPackage
    origin: Origin | None
    version: ModelVersion | None = None
    """Of the registry."""


def open_candidate(subject: Subject, scratch: Path, say: Callable[[str], None]) -> Candidate:
    """The model that a spec names; a run's weights are packaged into `scratch` first.

    Raises:
        InputError, ModelNotFound: there is no such run, version or address.
        CheckpointError, PackageError: its files are damaged, or its own code may not run.
        ServiceError: the registry does not answer.
    """
    match subject.kind:
        case "run":
            return _of_run(FinishedRun.open(_run_id(subject.ref), say), scratch)
        case "version":
            version = models().resolve(subject.ref)
            package = _opened(version.url, subject, version.digest)
            return Candidate(version.ref, package, _origin(package, say), version)
        case "package":
            package = _opened(subject.ref, subject)
            return Candidate(f"package {package.digest[:16]}", package, _origin(package, say))


def _of_run(run: FinishedRun, scratch: Path) -> Candidate:
    folder = Folder(scratch / "package")
    write_package(folder, run.card(run.spec.name), run.weights, run.code)
    package = open_package(folder.url, allow_code=True)  # the user's own run, as it was trained
    return Candidate(f"run {run.run_id}", package, Origin(run.run_id, run.folder, run.spec))


def _run_id(ref: str) -> str:
    """The id itself, or that of the newest finished run of a train spec's name."""
    if "/" in ref or runs().child(ref).exists("spec.json"):
        return ref
    named = [name for name in runs().list() if name.startswith(ref) and _STAMP.fullmatch(name[len(ref) :])]
    for run_id in sorted(named, reverse=True):
        folder = runs().child(run_id)
        if folder.exists("report.json") and folder.read_json("report.json")["status"] == "FINISHED":
            return run_id
    if named:
        raise InputError(
            f"model.ref {ref!r}: none of the {len(named)} runs of that name in {runs().url} is finished; "
            f"go on with one: eagleray resume {max(named)}"
        )
    return ref  # `existing` says what there is


def _opened(url: str, subject: Subject, digest: str | None = None) -> ModelPackage:
    """The package at `url`, allowed to run its own code only where the spec says so."""
    try:
        package = open_package(url, allow_code=True, digest=digest)
    except (ValueError, ImportError) as error:  # fsspec's, for an address that it does not know
        raise InputError(f"model.ref {url!r} is no address of a package: {error}") from error
    if not package.card.architecture.is_registered and not subject.allow_code:
        raise PackageError(
            f"{package.url}: its architecture {package.card.architecture.function!r} is code of the package "
            "or of a library, which judging it would run; if you trust it, set model.allow_code = true"
        )
    return package


def _origin(package: ModelPackage, say: Callable[[str], None]) -> Origin | None:
    run_id = package.card.lineage.run_id
    try:
        folder = existing(run_id)
        return Origin(run_id, folder, saved_spec(folder))
    except InputError:
        say(f"the run {run_id} that made the model is not in {runs().url}: its history is not known")
        return None
