"""`deploy`, `undeploy`: model versions behind the ingress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import next_steps, print_json
from eagleray.cli.shared import INTERRUPTED, json_option, set_option

if TYPE_CHECKING:
    from eagleray.client import Client, Service

TIMEOUT_S = 300.0
_POLL_S = 0.2


@click.command()
@click.argument("spec")
@set_option
@click.option("--no-wait", is_flag=True, help="Return at once, before it is ready.")
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for it.",
)
@ingress_options
@json_option
def deploy(
    spec: str, *, overrides: tuple[str, ...], no_wait: bool, timeout_s: float, place: Place, as_json: bool
) -> int:
    """Serve the model version that SPEC names.

    Again, to change it: the version that answered before is replaced without a failed request.
    """
    from eagleray.specs import ServiceSpec, load

    loaded = load(ServiceSpec, spec, overrides)
    with ingress_client(place) as client:
        service = client.admin.deploy(loaded)
        if not no_wait:
            began = time.monotonic()
            try:
                service = _await_ready(client, service, timeout_s)
            except KeyboardInterrupt:
                click.echo("\ndetached; it goes on starting. `eagleray status` says how it is", err=True)
                return INTERRUPTED
            click.echo(f"ready after {time.monotonic() - began:.1f} s", err=True)
        else:
            service = _found(client, service)
    if as_json:
        print_json(service)
        return 0
    click.echo(f"{service.name}/versions/{service.version} is {service.state} at {client.url}")
    asking = f"eagleray predict {service.name} FILE   or --text TEXT, where it takes text"
    next_steps("eagleray status" if no_wait else asking, flags=place.flags)
    return 0


@click.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="This one only.")
@ingress_options
@json_option
def undeploy(name: str, version: int | None, place: Place, as_json: bool) -> None:
    """Serve model NAME no more.

    What is being answered is answered to its end.
    """
    with ingress_client(place) as client:
        versions = client.admin.undeploy(name, version)
    if as_json:
        print_json({"name": name, "versions": versions})
        return
    noun = "version" if len(versions) == 1 else "versions"
    click.echo(f"{name}: undeployed {noun} {', '.join(map(str, versions))}")
    next_steps("eagleray status", flags=place.flags)


def _await_ready(client: Client, asked: Service, timeout_s: float) -> Service:
    """The version once it answers, each of its states shown. Raises: ServiceError: it failed, or is late."""
    from eagleray.client.admin import is_time_up

    deadline_s, shown = time.monotonic() + timeout_s, ""
    while (service := _found(client, asked)).state != "ready":
        is_time_up(service, time.monotonic() > deadline_s, timeout_s)
        if service.state != shown:
            shown = service.state
            click.echo(f"{service.name}/versions/{service.version} is {shown}", err=True)
        time.sleep(_POLL_S)
    return service


def _found(client: Client, asked: Service) -> Service:
    from eagleray.client.admin import pick

    return pick(client.admin.services(asked.name), asked)
