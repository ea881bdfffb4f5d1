"""What several verbs share: options, and the way to the cluster's jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from eagleray.errors import ClusterError

if TYPE_CHECKING:
    from eagleray.client.jobs import JobClient
    from eagleray.cluster.attached import AttachedCluster

INTERRUPTED = 130
DEFAULT_CLUSTER = "local"

name_option = click.option(
    "--name", default=None, metavar="NAME", help=f"The local cluster [{DEFAULT_CLUSTER}]."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Change one value of the spec."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def flags_of(cluster: str | None) -> str:
    """What named a local cluster on the command line, to be said again."""
    return "" if cluster is None else f" --name {cluster}"


class InOrder(click.Group):
    """Lists its verbs in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs' names."""
        return list(self.commands)


def attached_cluster(name: str | None) -> AttachedCluster | None:
    """The cluster that `attach` made known by that name; None where there is none.

    Raises:
        InputError: that cannot be a name.
    """
    from eagleray.cluster import attached, state

    name = name or DEFAULT_CLUSTER
    state.directory(name)
    return attached.read(name)


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

        if (attached := attached_cluster(name)) is not None:
            raise ClusterError(
                f"cluster {attached.name!r} was attached, and its jobs are at its own dashboard; name that: "
                "RAY_API_SERVER_ADDRESS=http://HOST:8265, and RAY_AUTH_TOKEN_PATH where it has a token"
            )
        found = state.find(name or DEFAULT_CLUSTER)
        address, token = found.dashboard_url, found.token
    with JobClient(address, token) as client:
        yield client
