"""`check`, `train`, `resume`, `tune`, `evaluate`, `publish`: specs, and the jobs that do what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from eagleray.cli.following import submit_and_follow
from eagleray.cli.ingress import look_up
from eagleray.cli.shared import DEFAULT_CLUSTER, json_option, name_option, set_option

if TYPE_CHECKING:
    from eagleray.client import Client, JobClient, JobResult
    from eagleray.specs import FileSpec, LocalSpec
    from eagleray.specs.evaluate import Subject

_PUBLISH = re.compile(r"eagleray publish \S+ --search \S+")
"""Near the end of a search's log."""
_JUDGED = re.compile(r"^evaluation \S+: (run )?([a-z0-9]\S*)$", re.MULTILINE)
"""The first line of an evaluation's log: a run by its id, or a version by its reference."""


@click.command()
@click.argument("spec")
@set_option
@json_option
def check(spec: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Validate a spec without a cluster."""
    from eagleray.specs import LocalSpec, TrainSpec, load_any

    found = load_any(spec, overrides)
    if isinstance(found, LocalSpec):
        _check_node_types(spec, found)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo(f"{spec}: a valid {getattr(found, 'kind', '')} spec")
    for line in _summary(found):
        click.echo(f"  {line}")
    for remark in found.remarks() if isinstance(found, TrainSpec) else ():
        click.echo(f"{spec}: {remark}", err=True)


def _check_node_types(path: str, spec: LocalSpec) -> None:
    """Raises: SpecError: cluster.yaml has not what local.toml names. A light install leaves that to `up`."""
    import importlib.util

    from eagleray.cluster.node_types import read_types
    from eagleray.errors import SpecError

    if importlib.util.find_spec("yaml") is None:
        return
    try:
        read_types(spec)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _summary(spec: FileSpec) -> Iterator[str]:
    """One line per table of the spec, with the values that differ from the defaults."""
    tables = spec.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    width = max(map(len, tables), default=0)
    for key, value in tables.items():
        yield f"{key:<{width}}  {_inline(value)}"


def _inline(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    first = [str(value["kind"])] if "kind" in value else []
    rest = (
        f"{key}={f'({_inline(item)})' if isinstance(item, dict) else item}"
        for key, item in value.items()
        if key != "kind"
    )
    return " ".join([*first, *rest])


@click.command()
@click.argument("spec")
@name_option
@set_option
@json_option
def train(spec: str, name: str | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Train what SPEC describes, as a job of the cluster."""
    from eagleray.client import submit_spec
    from eagleray.specs import TrainSpec, load

    loaded = load(TrainSpec, spec, overrides)
    return submit_and_follow(
        name, lambda client: submit_spec(client, loaded), as_json=as_json, then=_after_a_run
    )


@click.command()
@click.argument("run")
@name_option
@json_option
def resume(run: str, name: str | None, as_json: bool) -> int:
    """Go on with a stopped or failed RUN."""
    from eagleray.client import submit_resume
    from eagleray.client.asked_for import require_run

    look_up(name, lambda client: require_run(client, run))
    return submit_and_follow(
        name, lambda client: submit_resume(client, run), as_json=as_json, then=_after_a_run
    )


@click.command()
@click.argument("spec", required=False)
@click.option("--resume", "search", metavar="SEARCH", help="Go on with a stopped search, by its id.")
@name_option
@set_option
@json_option
def tune(
    spec: str | None, search: str | None, name: str | None, overrides: tuple[str, ...], as_json: bool
) -> int:
    """Search for the best values of a train spec, as SPEC says."""
    from eagleray.client import submit_spec, submit_tune_resume
    from eagleray.specs import TuneSpec, load

    if (spec is None) == (search is None) or (search and overrides):
        raise click.UsageError("give a SPEC (with --set, if need be), or --resume SEARCH")
    loaded = None if spec is None else load(TuneSpec, spec, overrides)

    def submit(client: JobClient) -> str:
        return submit_spec(client, loaded) if loaded else submit_tune_resume(client, str(search))

    return submit_and_follow(name, submit, as_json=as_json, then=_after_a_search)


@click.command()
@click.argument("spec")
@name_option
@set_option
@json_option
def evaluate(spec: str, name: str | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Judge a model on held-out data, as SPEC says."""
    from eagleray.client import submit_spec
    from eagleray.specs import EvaluateSpec, load

    loaded = load(EvaluateSpec, spec, overrides)
    look_up(name, lambda client: _require_subject(client, loaded.model))
    return submit_and_follow(
        name, lambda client: submit_spec(client, loaded), as_json=as_json, then=_after_an_evaluation
    )


@click.command()
@click.argument("run")
@click.option("--name", "model", metavar="MODEL", help="The model's name [the run's].")
@click.option("--alias", "aliases", multiple=True, metavar="ALIAS", help="Point it to the new version.")
@click.option("--search", metavar="SEARCH", help="The search whose trial the run was.")
@click.option("--parent", metavar="REF", help="The version that it was made from.")
@click.option("--cluster", metavar="NAME", help=f"The local cluster [{DEFAULT_CLUSTER}].")
@json_option
def publish(
    run: str,
    *,
    model: str | None,
    aliases: tuple[str, ...],
    search: str | None,
    parent: str | None,
    cluster: str | None,
    as_json: bool,
) -> int:
    """Make a finished RUN the next version of a model.

    RUN: its id, as `eagleray runs list` shows it.
    """
    from eagleray.client import submit_publish
    from eagleray.client.asked_for import require_model, require_run

    def look(client: Client) -> None:
        require_run(client, run)
        if parent is not None:
            require_model(client, parent)

    look_up(cluster, look)

    def then(result: JobResult) -> list[str]:
        name = (result.version or "").partition("/")[0]
        return [
            f"eagleray models show {result.version}",
            f'eagleray deploy SPEC   (a spec with kind = "service", name = "{name}")',
        ]

    return submit_and_follow(
        cluster,
        lambda client: submit_publish(client, run, name=model, aliases=aliases, search=search, parent=parent),
        as_json=as_json,
        then=then,
    )


def _require_subject(client: Client, subject: Subject) -> None:
    """Raises: InputError where what an evaluation is to judge is not there."""
    from eagleray.client.asked_for import require_model, require_run

    if subject.kind == "run":
        require_run(client, subject.ref, or_name=True)
    elif subject.kind == "version":
        require_model(client, subject.ref)


def _after_a_run(result: JobResult) -> list[str]:
    return [f"eagleray publish {result.made}"]


def _after_a_search(result: JobResult) -> list[str]:
    return _PUBLISH.findall(result.log)[-1:]


def _after_an_evaluation(result: JobResult) -> list[str]:
    judged = _JUDGED.search(result.log)
    if judged is None:
        return []
    return [f"eagleray {'publish' if judged[1] else 'models show'} {judged[2]}"]
