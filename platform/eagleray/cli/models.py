"""`models`: the registry, through the ingress's admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import date, next_steps, number, print_json, print_table
from eagleray.cli.shared import InOrder, json_option

if TYPE_CHECKING:
    from eagleray.client import RegisteredVersion

_NUM_METRICS = 3


@click.group(cls=InOrder)
def models() -> None:
    """Published models and their versions."""


@models.command("list")
@ingress_options
@json_option
def list_models(place: Place, as_json: bool) -> None:
    """List every model of the registry, deployed or not."""
    with ingress_client(place) as client:
        found = client.admin.models()
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no models yet")
        next_steps("eagleray publish RUN --name NAME", flags=place.flags)
        return
    print_table(
        ["model", "versions", "aliases", "deployed"],
        [
            (
                model.name,
                _numbers(model.versions),
                ", ".join(f"{alias} -> {version}" for alias, version in sorted(model.aliases.items())),
                _numbers(model.deployed),
            )
            for model in found
        ],
    )
    next_steps(f"eagleray models show {found[0].name}", flags=place.flags)


@models.command()
@click.argument("ref")
@ingress_options
@json_option
def show(ref: str, place: Place, as_json: bool) -> None:
    """Show a model's versions, and all of the one that REF means.

    REF: NAME (its newest version), NAME@ALIAS or NAME/versions/NUMBER.
    """
    from eagleray.specs.model_ref import Ref, pick

    wanted = Ref.parse(ref)
    with ingress_client(place) as client:
        versions = client.admin.versions(wanted.name)
    meant = pick(wanted, versions)
    if as_json:
        print_json({"name": meant.name, "version": meant, "versions": versions})
        return
    print_table(
        ["version", "aliases", "metrics", "created", "run"],
        [
            (
                version.version,
                ", ".join(version.aliases),
                "  ".join(_metrics(version, _NUM_METRICS)),
                date(version.created_at),
                version.lineage.get("run_id"),
            )
            for version in versions
        ],
        right=["version"],
    )
    click.echo()
    for line in _described(meant):
        click.echo(line)
    next_steps(
        f"eagleray models promote {meant.name} {meant.version} ALIAS",
        f'eagleray deploy SPEC   (a spec with kind = "service", name = "{meant.name}")',
        flags=place.flags,
    )


@models.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.argument("alias")
@ingress_options
@json_option
def promote(name: str, version: int, alias: str, place: Place, as_json: bool) -> None:
    """Point ALIAS of model NAME to VERSION, in the registry and at the ingress."""
    from eagleray.specs.model_ref import check_alias, check_name

    check_name(name)
    check_alias(alias)
    with ingress_client(place) as client:
        client.admin.promote(name, version, alias)
    if as_json:
        print_json({"name": name, "version": version, "alias": alias})
        return
    click.echo(f"{name}@{alias} is version {version}")
    next_steps(f"eagleray models show {name}@{alias}", flags=place.flags)


def _described(version: RegisteredVersion) -> list[str]:
    """All that is known of one version, a line each."""
    lineage = {key: value for key, value in version.lineage.items() if value not in (None, [], "")}
    lineage.pop("created_at", None)
    entries = {
        "package": version.digest,
        **{key.replace("_", " "): _inline(value) for key, value in lineage.items()},
        "metrics": "  ".join(_metrics(version, None)) or "-",
    }
    width = max(map(len, entries))
    return [
        f"{version.name}/versions/{version.version}",
        *(f"  {key:<{width}}  {value}" for key, value in entries.items()),
    ]


def _metrics(version: RegisteredVersion, limit: int | None) -> list[str]:
    """The metrics, those of held-out data first."""
    order = sorted(version.metrics, key=lambda name: not name.startswith("test_"))
    return [f"{name} {number(version.metrics[name])}" for name in order[:limit]]


def _numbers(versions: tuple[int, ...]) -> str:
    return ", ".join(map(str, versions))


def _inline(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
