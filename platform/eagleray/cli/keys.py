"""`keys`: who may call models, and who may deploy them."""

from __future__ import annotations

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import date, next_steps, print_json, print_table
from eagleray.cli.shared import InOrder, json_option


@click.group(cls=InOrder)
def keys() -> None:
    """API keys of the ingress."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("infer",),
    show_default=True,
    metavar="SCOPE",
    help="infer or admin; repeat it for both.",
)
@ingress_options
@json_option
def create(name: str, scopes: tuple[str, ...], place: Place, as_json: bool) -> None:
    """Make a key, to be known by NAME; it is shown this once and kept nowhere."""
    with ingress_client(place) as client:
        made = client.admin.create_key(name, scopes)
    if as_json:
        print_json(made)
        return
    click.echo(made.key)
    click.echo(
        f"key {made.id} ({made.name!r}, {', '.join(made.scopes)}): shown this once and kept nowhere", err=True
    )
    next_steps("export EAGLERAY_KEY=…", f"eagleray keys revoke {made.id}", flags=place.flags)


@keys.command("list")
@ingress_options
@json_option
def list_keys(place: Place, as_json: bool) -> None:
    """List the keys that open something, without their text."""
    with ingress_client(place) as client:
        found = client.admin.keys()
    if as_json:
        shown = ("id", "name", "scopes", "created_at")
        print_json([{field: getattr(key, field) for field in shown} for key in found])
        return
    print_table(
        ["id", "name", "scopes", "created"],
        [(key.id, key.name, ", ".join(key.scopes), date(key.created_at)) for key in found],
    )
    next_steps("eagleray keys create NAME --scope infer", "eagleray keys revoke ID", flags=place.flags)


@keys.command()
@click.argument("key_id", metavar="ID")
@ingress_options
@json_option
def revoke(key_id: str, place: Place, as_json: bool) -> None:
    """Let the key ID open nothing any more."""
    with ingress_client(place) as client:
        client.admin.revoke_key(key_id)
    if as_json:
        print_json({"id": key_id})
        return
    click.echo(f"key {key_id} is revoked")
    next_steps("eagleray keys list", flags=place.flags)
