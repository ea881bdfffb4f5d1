"""`status`: what runs; of a local cluster its processes too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import next_steps, print_json, print_table
from eagleray.cli.shared import DEFAULT_CLUSTER, attached_cluster, json_option

if TYPE_CHECKING:
    from eagleray.client import Claims, Service
    from eagleray.workflows.serving_status import ServingStatus


@click.command()
@ingress_options
@json_option
def status(place: Place, as_json: bool) -> None:
    """Show what runs: head, nodes, addresses, models.

    Beside these who holds which CPUs and GPUs under which claim, and what waits for what. Of an ingress that
    --url names, and of an attached cluster: what it says of itself and its models.
    """
    if place.is_local and attached_cluster(place.name) is None:
        _of_cluster(place, as_json)
        return
    from eagleray.workflows.serving_status import look, to_json

    with ingress_client(place, is_patient=False) as client:
        found = look(client)
    if as_json:
        print_json(to_json(found))
        return
    about = found.about
    click.echo(
        f"ingress {found.url}: {'NOT READY' if found.trouble else 'ready'}, eagleray {about['version']}"
    )
    click.echo(f"  cluster {about.get('cluster')}, {about.get('nodes')} nodes")
    _show_claims(found.claims)
    _show_serving(found, place)


def _of_cluster(place: Place, as_json: bool) -> None:
    from eagleray.cluster.local import to_json
    from eagleray.cluster.state import find
    from eagleray.workflows.claims import of_cluster
    from eagleray.workflows.serving_status import to_json as serving_to_json
    from eagleray.workflows.serving_status import try_to_look
    from eagleray.workflows.status import as_text, status

    found, serving = status(place.name or DEFAULT_CLUSTER), None
    if found.is_ingress_ready:
        with ingress_client(place, is_patient=False) as client:
            serving = try_to_look(client)
    claims = None if serving is None else serving.claims
    if found.ingress_url is None and found.is_ready:
        claims = of_cluster(find(found.name))
    if as_json:
        nothing: dict[str, Any] = {"ingress": None, "services": []}
        shown = nothing if serving is None else serving_to_json(serving)
        print_json({**to_json(found), **shown, "claims": claims})
        return
    click.echo(as_text(found))
    _show_claims(claims)
    if serving is not None:
        _show_serving(serving, place)


def _show_claims(found: Claims | None) -> None:
    if found is None:
        return
    from eagleray.workflows.claims import COLUMNS, rows, sentences

    lines = rows(found)
    click.echo(f"claims: {found.trouble or ('none' if not lines else '')}".rstrip())
    if lines:
        print_table(COLUMNS, lines, right=["wants"])
    for sentence in sentences(found):
        click.echo(sentence)


def _show_serving(found: ServingStatus, place: Place) -> None:
    from eagleray import __version__

    if found.trouble:
        click.echo(f"serving: {found.trouble}")
    if found.other_version:
        click.echo(
            f"NOTE: the ingress runs eagleray {found.other_version}, and {__version__} is installed here; "
            "start it anew, or install the same version"
        )
    if not found.about:
        return
    if not found.services:
        click.echo("served models: none")
        next_steps("eagleray models list", "eagleray publish RUN --name NAME", flags=place.flags)
        return
    click.echo("served models:")
    print_table(
        ["model", "version", "state", "replicas", "answers to", "message"],
        [
            (
                service.name,
                service.version,
                service.state,
                service.replicas,
                ", ".join(
                    [
                        *([service.name] if service.is_default else []),
                        *(f"{service.name}@{alias}" for alias in service.aliases),
                    ]
                )
                or f"{service.name}/versions/{service.version}",
                _message(service),
            )
            for service in found.services
        ],
        right=["version", "replicas"],
    )
    next_steps(f"eagleray predict {found.services[0].name} FILE   or --text TEXT", flags=place.flags)


def _message(service: Service) -> str:
    """Why it failed, or why it has the replicas that it has, as of the last change."""
    if service.message or not service.reason:
        return service.message
    return f"wants {service.wanted}: {service.reason}"
