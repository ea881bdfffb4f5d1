"""`check`, `train`, `resume`: specs, and the runs of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from eagleray.cli.following import submit_and_follow
from eagleray.cli.shared import json_option, name_option, set_option

if TYPE_CHECKING:
    from eagleray.specs import FileSpec


@click.command()
@click.argument("spec")
@set_option
@json_option
def check(spec: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Validate a spec without a cluster."""
    from eagleray.specs import load_any

    found = load_any(spec, overrides)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    click.echo(f"{spec}: a valid {getattr(found, 'kind', '')} spec")
    for line in _summary(found):
        click.echo(f"  {line}")


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
def train(spec: str, name: str | None, overrides: tuple[str, ...]) -> int:
    """Train what SPEC describes, as a job of the cluster."""
    from eagleray.client.submission import submit_run
    from eagleray.specs import TrainSpec, load

    loaded = load(TrainSpec, spec, overrides)
    return submit_and_follow(name, lambda client: submit_run(client, "train", loaded))


@click.command()
@click.argument("run")
@name_option
def resume(run: str, name: str | None) -> int:
    """Go on with a stopped or failed RUN."""
    from eagleray.client.submission import submit_resume

    return submit_and_follow(name, lambda client: submit_resume(client, run))
