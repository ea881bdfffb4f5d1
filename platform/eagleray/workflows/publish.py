"""`python -m eagleray.workflows.publish RUN --name digits`: a finished run becomes a model version."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from eagleray.cluster import settings
from eagleray.errors import EaglerayError, PackageError, ServiceError
from eagleray.packaging import ModelStore, ModelVersion
from eagleray.specs.model_ref import check_alias, check_name
from eagleray.workflows.finished import FinishedRun


def publish(
    run_id: str,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    search: str | None = None,
    parent: str | None = None,
    metrics: Mapping[str, float] | None = None,
    say: Callable[[str], None] = print,
) -> ModelVersion:
    """Publish the newest weights of a finished run as the next version of `name`.

    Args:
        run_id: The run.
        name: Of the model; the run's own name where not given.
        aliases: Point to the new version afterwards.
        search: The search whose trial the run was, where the run does not know it.
        parent: The version that it was made from, any reference ("digits@production").
        metrics: Laid over those of the run's report.
        say: Takes what is not as it should be, in words.

    Raises:
        InputError: no such run, it is not finished, or a name or reference is wrong.
        CheckpointError, PackageError: no checkpoint of it verifies, or the weights do not fit its model.
        ServiceError: MLflow does not answer; nothing was published, and the run is as it was.
    """
    for alias in aliases:
        check_alias(alias)
    run = FinishedRun.open(run_id, say)
    name = check_name(name or run.spec.name)
    store = models()
    origin = store.resolve(parent).ref if parent else None
    card = run.card(name, metrics=metrics, search=search, parent=origin)
    _require_fit(run)
    return store.publish(card, run.weights, run.code, aliases=aliases)


def models() -> ModelStore:
    """The model registry of this cluster."""
    from eagleray.registry.models import MlflowModels

    return MlflowModels(settings.tracking_uri(), settings.storage_url())


def _require_fit(run: FinishedRun) -> None:
    """Build the model and load the weights once. Raises: PackageError, SpecError where they do not fit."""
    from eagleray.models import build

    if run.code is not None:
        run.import_code()
    try:
        build(run.spec.model, run.signature).load_state_dict(run.weights)
    except RuntimeError as error:
        raise PackageError(
            f"run {run.run_id}: its weights do not fit its model: {' '.join(str(error).split())[:300]}"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Publish the run named in `argv`; returns the exit code (0 done, 1 failed, 2 bad input)."""
    import argparse

    parser = argparse.ArgumentParser(prog="publish", description="Make a model version of RUN's weights.")
    parser.add_argument("run", help="run id, the name of its folder in storage")
    parser.add_argument("--name", help="the model's name (default: the run's)")
    parser.add_argument("--alias", dest="aliases", action="append", default=[], metavar="ALIAS")
    parser.add_argument("--search", help="id of the search whose trial the run was")
    parser.add_argument(
        "--parent", metavar="MODEL", help="the version it was made from, for instance digits@production"
    )
    given = parser.parse_args(argv)
    try:
        made = publish(
            given.run,
            name=given.name,
            aliases=given.aliases,
            search=given.search,
            parent=given.parent,
            say=_say,
        )
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        again = shlex.join(sys.argv[1:] if argv is None else argv)
        _say(f"the run's result is kept; publish it later: eagleray publish {again}")
        return error.exit_code
    except EaglerayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        reason = error.strerror or error
        print(f"error: {settings.storage_url()} cannot be read: {reason}", file=sys.stderr, flush=True)
        return 1
    for line in summary(made):
        _say(line)
    return 0


def summary(version: ModelVersion) -> list[str]:
    """The last lines of the log."""
    tests = [name for name in version.metrics if name.startswith("test_")][:4]
    metrics = "  ".join(f"{name} {version.metrics[name]:.4f}" for name in tests)
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    return [
        f"published {version.ref}{aliases}" + (f": {metrics}" if metrics else ""),
        f"  package {version.digest[:16]} in {version.url}",
    ]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
