"""`up`, `down`, `env`: a local cluster; `attach`: one that others started."""

from __future__ import annotations

import click

from eagleray.cli.output import next_steps
from eagleray.cli.shared import DEFAULT_CLUSTER, flags_of, name_option, set_option


@click.command()
@click.argument("spec", default="local.toml")
@name_option
@set_option
def up(spec: str, name: str | None, overrides: tuple[str, ...]) -> None:
    """Start a local elastic cluster as SPEC (local.toml) says."""
    from eagleray.workflows.up import up

    up(name or DEFAULT_CLUSTER, spec, overrides, click.echo)
    next_steps("eagleray train SPEC", "eagleray status", flags=flags_of(name))


@click.command()
@click.argument("address")
@name_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Of the ingress, on the head.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Of the ingress."
)
@click.option(
    "--access-log-mib",
    type=click.FloatRange(0),
    default=0,
    metavar="MIB",
    help="Of a log of requests; 0: none.",
)
@click.option("--tls-cert", default="", metavar="FILE", help="Certificate in PEM, on the head: HTTPS.")
@click.option("--tls-key", default="", metavar="FILE", help="Its private key.")
@click.option("--insecure", is_flag=True, help="Let it listen beyond the head, in plain HTTP.")
@click.option("--require-key", is_flag=True, help="Models need a key on loopback too: for a proxy in front.")
@click.option(
    "--gateway-label",
    "gateway_labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the nodes on which they run, with --host 0.0.0.0; without it, on the head.",
)
@click.option("--gateways", type=click.IntRange(1, 64), default=1, help="Processes that take requests.")
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Of a proxy in front, or a network of such: its X-Forwarded-For is believed, and models need a key.",
)
@click.option(
    "--profile",
    type=click.Choice(["default", "fast", "lossy"]),
    help="Of recovery, as far as a running cluster takes one; without it, the cluster's stays.",
)
def attach(
    address: str,
    name: str | None,
    *,
    host: str,
    port: int,
    access_log_mib: float,
    tls_cert: str,
    tls_key: str,
    insecure: bool,
    require_key: bool,
    gateways: int,
    gateway_labels: tuple[str, ...],
    trusted_proxies: tuple[str, ...],
    profile: str | None,
) -> None:
    """Put the ingress on a running Ray cluster.

    ADDRESS is that of its GCS, as host:6379.

    Run it on a machine of the cluster. `eagleray down` takes back what it started there, and no more.
    """
    from eagleray.workflows.attach import attach

    attach(
        address,
        name or DEFAULT_CLUSTER,
        host=host,
        port=port,
        access_log_mib=access_log_mib,
        tls_cert=tls_cert,
        tls_key=tls_key,
        is_insecure=insecure,
        is_key_required=require_key,
        gateways=gateways,
        gateway_labels=_labels(gateway_labels),
        trusted_proxies=trusted_proxies,
        profile=profile,
        say=click.echo,
    )
    next_steps("eagleray status", "eagleray deploy SPEC", flags=flags_of(name))


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Raises: click.BadParameter."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise click.BadParameter(f"{pair!r}: expected KEY=VALUE", param_hint="--gateway-label")
        found[key] = value
    return found


@click.command()
@name_option
def down(name: str | None) -> None:
    """Stop a local cluster and all that it started.

    Of a cluster that was attached, end what `attach` started on it, and no more.
    """
    from eagleray.workflows.down import down

    down(name or DEFAULT_CLUSTER, click.echo)


@click.command()
@name_option
@click.option("--sdk", "is_for_sdk", is_flag=True, help="For the SDK: EAGLERAY_URL and EAGLERAY_KEY.")
def env(name: str | None, *, is_for_sdk: bool) -> None:
    """Print exports for Ray's own commands, or the SDK."""
    from eagleray.workflows.env import as_shell, env, for_sdk

    name = name or DEFAULT_CLUSTER
    click.echo(for_sdk(name) if is_for_sdk else as_shell(env(name)))
