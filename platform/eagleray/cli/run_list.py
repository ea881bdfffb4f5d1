"""`runs`: what was trained, as the tracking knows it, through the ingress's admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import date, next_steps, number, print_json, print_table
from eagleray.cli.shared import InOrder, json_option

if TYPE_CHECKING:
    from eagleray.client import Run


@click.group(cls=InOrder)
def runs() -> None:
    """Training runs, those of searches too."""


@runs.command("list")
@click.argument("run", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    metavar="N",
    help="So many at most.",
)
@ingress_options
@json_option
def list_runs(run: str | None, limit: int, place: Place, as_json: bool) -> None:
    """List the newest runs.

    RUN: only the run of this id, or those of the spec of this name.
    """
    with ingress_client(place) as client:
        found = client.runs(run, limit=limit)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no runs yet" if run is None else f"no run {run!r}")
        next_steps("eagleray train SPEC" if run is None else "eagleray runs list", flags=place.flags)
        return
    print_table(
        ["run", "kind", "status", "started", "metric"],
        [(each.id, each.kind, each.status, date(each.started_at), _metric(each)) for each in found],
    )
    next_steps(*_next(found), flags=place.flags)


def _metric(run: Run) -> str:
    return "" if run.metric is None or run.value is None else f"{run.metric} {number(run.value)}"


def _next(found: list[Run]) -> list[str]:
    """What can be done with the newest one of each state."""
    newest = {run.status: run.id for run in reversed(found)}
    verbs = {"finished": "publish", "stopped": "resume", "failed": "resume"}
    steps = {verb: newest[status] for status, verb in verbs.items() if status in newest}
    return [f"eagleray {verb} {run_id}" for verb, run_id in steps.items()] or ["eagleray jobs"]
