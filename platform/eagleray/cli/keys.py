"""`keys`: who may call models, how much of them, and who may deploy them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from eagleray.cli.ingress import Place, ingress_client, ingress_options
from eagleray.cli.output import date, next_steps, number, print_json, print_table
from eagleray.cli.shared import InOrder, json_option
from eagleray.protocol.key_terms import PRIORITIES, KeyTerms

if TYPE_CHECKING:
    from eagleray.client import ApiKey

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_SHOWN = ("id", "name", "scopes", "created_at", "terms", "old_text_until")


class Duration(click.ParamType):
    """90s, 30m, 12h or 7d, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds. Raises: click.BadParameter."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value)
        if found is None:
            self.fail(f"{value!r}: expected a time such as 90s, 30m, 12h or 7d", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class Amount(click.ParamType):
    """10, 2.5, 10M or 64Mi."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises: click.BadParameter."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]i?|)", value)
        if found is None:
            self.fail(f"{value!r}: expected a number such as 10, 2.5, 10M or 64Mi", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def terms_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Options for what a key may use; the verb gets them one by one, as KeyTerms has them."""
    for option in reversed(
        (
            click.option(
                "--model", "models", multiple=True, metavar="NAME",
                help="May use this model, or those that begin so (gpt-*); repeat it. Without it: all.",
            ),
            click.option("--requests-per-s", type=Amount(), metavar="N", help="Requests a second."),
            click.option(
                "--burst", type=Amount(), metavar="N",
                help="Requests at once after a pause [a quarter of a second of --requests-per-s].",
            ),
            click.option(
                "--tokens-per-s", type=Amount(), metavar="N", help="Tokens a second, prompts and answers."
            ),
            click.option("--bytes-per-s", type=Amount(), metavar="N", help="Bytes of bodies a second: 10Mi."),
            click.option("--concurrency", type=int, metavar="N", help="Requests at a time."),
            click.option(
                "--weight", type=int, default=1, show_default=True, metavar="N",
                help="Its share, 1 to 100, where keys wait for one another.",
            ),
            click.option(
                "--priority", type=click.Choice(PRIORITIES), default="interactive", show_default=True,
                help="Waits for none of the later ones.",
            ),
            click.option("--expires-in", type=Duration(), metavar="TIME", help="30m, 12h or 7d."),
        )
    ):  # fmt: skip
        verb = option(verb)
    return verb


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
@terms_options
@ingress_options
@json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    expires_in: float | None,
    place: Place,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key, to be known by NAME; it is shown this once and kept nowhere."""
    expires_at = None if expires_in is None else time.time() + expires_in
    terms = KeyTerms(**limits, expires_at=expires_at)
    with ingress_client(place) as client:
        made = client.admin.create_key(name, scopes, terms)
    if as_json:
        print_json(made)
        return
    click.echo(made.key)
    what = ", ".join([repr(made.name), *made.scopes, *_in_words(made)])
    click.echo(f"key {made.id} ({what}): shown this once and kept nowhere", err=True)
    next_steps("export EAGLERAY_KEY=…", f"eagleray keys revoke {made.id}", flags=place.flags)


@keys.command("list")
@ingress_options
@json_option
def list_keys(place: Place, as_json: bool) -> None:
    """List the keys and what they may use, without their text."""
    with ingress_client(place) as client:
        found = client.admin.keys()
    if as_json:
        print_json([{field: getattr(key, field) for field in _SHOWN} for key in found])
        return
    print_table(
        ["id", "name", "scopes", "created", "terms"],
        [
            (key.id, key.name, ", ".join(key.scopes), date(key.created_at), ", ".join(_in_words(key)))
            for key in found
        ],
    )
    next_steps("eagleray keys create NAME --scope infer", "eagleray keys revoke ID", flags=place.flags)


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap",
    type=Duration(),
    default="24h",
    show_default=True,
    metavar="TIME",
    help="For so long the old text is good too: 30m, 12h, 7d; 0s ends it now.",
)
@ingress_options
@json_option
def rotate(key_id: str, overlap: float, place: Place, as_json: bool) -> None:
    """Give the key ID a new text, which is shown this once; name, scopes and limits stay."""
    with ingress_client(place) as client:
        made = client.admin.rotate_key(key_id, overlap_s=overlap)
    if as_json:
        print_json(made)
        return
    click.echo(made.key)
    until = "no longer good" if made.old_text_until is None else f"good until {date(made.old_text_until)}"
    click.echo(
        f"key {made.id} ({made.name!r}): shown this once and kept nowhere; its old text is {until}", err=True
    )
    next_steps("export EAGLERAY_KEY=…", f"eagleray keys revoke {made.id}", flags=place.flags)


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


def _in_words(key: ApiKey) -> list[str]:
    """What the key may use, as far as it is not everything."""
    terms = key.terms
    found = [
        f"{number(value)} {what}"
        for value, what in (
            (terms.requests_per_s, "requests/s"),
            (terms.burst, "at once"),
            (terms.tokens_per_s, "tokens/s"),
            (terms.bytes_per_s, "bytes/s"),
            (terms.concurrency, "at a time"),
        )
        if value is not None
    ]
    if terms.models:
        found.insert(0, " ".join(terms.models))
    if terms.weight != 1:
        found.append(f"weight {terms.weight}")
    if terms.priority != "interactive":
        found.append(terms.priority)
    if terms.expires_at is not None:
        found.append(f"{'expired' if terms.expires_at <= time.time() else 'until'} {date(terms.expires_at)}")
    if key.old_text_until is not None and key.old_text_until > time.time():
        found.append(f"old text until {date(key.old_text_until)}")
    return found
