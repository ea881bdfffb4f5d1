"""`gateways`: the processes that take requests; more of them, fewer, or new ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import next_steps, print_json
from eagleray.cli.shared import InOrder, json_option
from eagleray.errors import ServiceError

if TYPE_CHECKING:
    from eagleray.client import Client, Gateways

WAIT_S = 180.0
_POLL_S = 0.2


@click.group(cls=InOrder)
def gateways() -> None:
    """Processes of the ingress that take requests."""


@gateways.command()
@ingress_options
@json_option
def show(place: Place, as_json: bool) -> None:
    """Say how many there are, and whether they are as asked for."""
    with ingress_client(place) as client:
        found = client.admin.gateways()
    _print(found, as_json)
    next_steps("eagleray gateways restart", "eagleray gateways scale NUMBER", flags=place.flags)


@gateways.command()
@click.option("--no-wait", is_flag=True, help="Return at once, before they are replaced.")
@ingress_options
@json_option
def restart(no_wait: bool, place: Place, as_json: bool) -> None:
    """Replace all gateways; no request fails.

    New ones take requests before the old ones end, which finish what they have begun.
    """
    with ingress_client(place) as client:
        _print(_ordered(client, client.admin.restart_gateways, no_wait), as_json)
    next_steps("eagleray gateways show", flags=place.flags)


@gateways.command()
@click.argument("number", type=click.IntRange(1, 64))
@click.option("--no-wait", is_flag=True, help="Return at once, before they are there.")
@ingress_options
@json_option
def scale(number: int, no_wait: bool, place: Place, as_json: bool) -> None:
    """Have NUMBER gateways, until the cluster is started with another number than now."""
    with ingress_client(place) as client:
        _print(_ordered(client, lambda: client.admin.scale_gateways(number), no_wait), as_json)
    next_steps("eagleray gateways show", flags=place.flags)


def _ordered(client: Client, order: Callable[[], Gateways], no_wait: bool) -> Gateways:
    """The gateways when they are as asked for. Raises: ServiceError where that takes too long."""
    began = time.monotonic()
    found = order()
    while not (no_wait or found.is_settled):
        if time.monotonic() - began > WAIT_S:
            raise ServiceError(
                f"the gateways are not as asked for after {WAIT_S:.0f} s "
                f"({found.message or 'no reason known'}); it goes on: `eagleray gateways show`"
            )
        time.sleep(_POLL_S)
        found = client.admin.gateways()
    return found


def _print(found: Gateways, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    state = "as asked for" if found.is_settled else f"changing: {found.message or 'asked just now'}"
    click.echo(f"{found.number} gateways, {found.running} running, {state}")
