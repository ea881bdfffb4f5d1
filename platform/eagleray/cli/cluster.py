"""`up`, `down`, `env`: a local cluster."""

from __future__ import annotations

import click

from eagleray.cli.shared import DEFAULT_CLUSTER, name_option, set_option


@click.command()
@click.argument("spec", default="local.toml")
@name_option
@set_option
def up(spec: str, name: str | None, overrides: tuple[str, ...]) -> None:
    """Start a local elastic cluster as SPEC (local.toml) says."""
    from eagleray.workflows.up import up

    up(name or DEFAULT_CLUSTER, spec, overrides, click.echo)


@click.command()
@name_option
def down(name: str | None) -> None:
    """Stop a local cluster and all that it started."""
    from eagleray.workflows.down import down

    down(name or DEFAULT_CLUSTER, click.echo)


@click.command()
@name_option
def env(name: str | None) -> None:
    """Print exports for Ray's own commands, for `eval`."""
    from eagleray.workflows.env import as_shell, env

    click.echo(as_shell(env(name or DEFAULT_CLUSTER)))
