"""What several verbs share: options, and the way to the cluster's jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

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
    from eagleray.client import environment
    from eagleray.client.jobs import JobClient

    address = environment.job_address() if name is None else None
    if address:
        token = environment.token()
    else:
        from eagleray.cluster import state

        found = state.find(name or DEFAULT_CLUSTER)
        address, token = found.dashboard_url, found.token
    with JobClient(address, token) as client:
        yield client
