"""What several verbs share: options, the way to the cluster's jobs, JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from eagleray.errors import InputError

if TYPE_CHECKING:
    from eagleray.client.jobs import JobClient

INTERRUPTED = 130
DEFAULT_CLUSTER = "local"

name_option = click.option(
    "--name", default=None, metavar="NAME", help=f"The local cluster [{DEFAULT_CLUSTER}]."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Change one value of the spec."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class InOrder(click.Group):
    """Lists its verbs in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs' names."""
        return list(self.commands)


@contextmanager
def job_client(name: str | None) -> Iterator[JobClient]:
    """The job API of the local cluster `name`; where none is given, of the one that the environment names."""
    from eagleray.client.jobs import JobClient

    address = os.environ.get("RAY_API_SERVER_ADDRESS") if name is None else None
    if address:
        token = _token_from_environment()
    else:
        from eagleray.cluster import state

        found = state.find(name or DEFAULT_CLUSTER)
        address, token = found.dashboard_url, found.token
    with JobClient(address, token) as client:
        yield client


def _token_from_environment() -> str | None:
    """Ray's own variables, as `eagleray env` exports them."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None or "RAY_AUTH_TOKEN" in os.environ:
        return os.environ.get("RAY_AUTH_TOKEN")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise InputError(f"RAY_AUTH_TOKEN_PATH {path}: cannot be read: {error.strerror}") from None


def to_json(found: Any) -> str:
    """Dataclasses, and lists of them, as JSON; paths as text."""
    import dataclasses
    import json

    plain = (
        [dataclasses.asdict(item) for item in found] if isinstance(found, list) else dataclasses.asdict(found)
    )
    return json.dumps(plain, indent=2, default=str)
