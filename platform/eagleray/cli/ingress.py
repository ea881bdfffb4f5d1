"""The way to an ingress: of a local cluster, or of any other by URL and key."""

from __future__ import annotations

import functools
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eagleray.cli.shared import DEFAULT_CLUSTER, attached_cluster
from eagleray.errors import InputError

if TYPE_CHECKING:
    from eagleray.client import Client
    from eagleray.cluster.state import ClusterState

STARTING_S = 120.0
"""A cluster younger than this is waited for: `up` returns before its ingress answers."""
IMPATIENT_S = 10.0
LOOK_UP_S = 5.0
"""A job would say it after 7 to 10 s."""
_POLL_S = 0.2


@dataclass(frozen=True)
class Place:
    """The ingress that the options of a verb name."""

    name: str | None
    """Of a local cluster."""
    url: str | None
    key_file: str | None

    @property
    def is_local(self) -> bool:
        """Whether a cluster's name leads to it: where no URL is given, nor in the environment."""
        return self.url is None and (self.name is not None or not os.environ.get("EAGLERAY_URL"))

    @property
    def flags(self) -> str:
        """What named it on the command line, to be said again."""
        given = (("--name", self.name), ("--url", self.url), ("--key-file", self.key_file))
        return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given if value is not None)

    def key(self) -> str | None:
        """The key from its file, or from EAGLERAY_KEY where no cluster is named. Raises: InputError."""
        if self.key_file is not None:
            return read_key(Path(self.key_file))
        return os.environ.get("EAGLERAY_KEY") if self.name is None else None


def ingress_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name an ingress; the verb gets them as one argument, `place`."""

    @click.option("--name", "cluster", metavar="NAME", help=f"Of this local cluster [{DEFAULT_CLUSTER}].")
    @click.option("--url", metavar="URL", help="The ingress's address [$EAGLERAY_URL].")
    @click.option("--key-file", metavar="FILE", help="File with the API key [$EAGLERAY_KEY is the key].")
    @functools.wraps(verb)
    def placed(*args: Any, cluster: str | None, url: str | None, key_file: str | None, **options: Any) -> Any:
        if cluster is not None and url is not None:
            raise click.UsageError("give --name (a local cluster) or --url, not both")
        return verb(*args, place=Place(cluster, url, key_file), **options)

    return placed


@contextmanager
def ingress_client(place: Place, *, is_patient: bool = True) -> Iterator[Client]:
    """A client of the ingress; where `is_patient`, that of a cluster just started is waited for."""
    from eagleray.client import Client

    options: Any = {} if is_patient else {"max_attempts": 1, "timeout_s": IMPATIENT_S}
    if not place.is_local:
        with Client(place.url, place.key(), **options) as client:
            yield client
        return
    if (attached := attached_cluster(place.name)) is not None:
        url, key = attached.ingress_url, place.key() or read_key(attached.admin_key_path)
    else:
        from eagleray.cluster import state

        cluster = state.find(place.name or DEFAULT_CLUSTER)
        url = state.ingress_url(cluster)
        if is_patient:
            _await_start(cluster, url)
        key = place.key() or read_key(state.admin_key_path(cluster))
    with Client(url, key, **options) as client:
        yield client


def look_up(name: str | None, look: Callable[[Client], None]) -> None:
    """Let `look` refuse at once what a job of the cluster `name` would refuse after seconds.

    Args:
        name: A local cluster; where none is given, the one whose jobs the environment names.
        look: Raises where what it asks for is not there. Where no ingress is known it is not called.
    """
    from eagleray.client import Client

    found = _ingress_beside_jobs(name)
    if found is not None:
        with Client(*found, max_attempts=1, timeout_s=LOOK_UP_S) as client:
            look(client)


def _ingress_beside_jobs(name: str | None) -> tuple[str, str] | None:
    """Address and admin key of the ingress on the cluster whose jobs `shared.job_client` reaches."""
    from eagleray.client import environment
    from eagleray.cluster import state

    address = environment.job_address() if name is None else None
    named = [name or DEFAULT_CLUSTER] if address is None else state.names()
    for cluster in filter(None, map(state.read, named)):
        if cluster.ingress_url and address in (None, cluster.dashboard_url):
            try:
                return cluster.ingress_url, read_key(cluster.admin_key_path)
            except InputError:  # it has not started yet
                return None
    url, key = os.environ.get("EAGLERAY_URL"), os.environ.get("EAGLERAY_KEY")
    return (url, key) if address and url and key else None


def read_key(path: Path) -> str:
    """The API key in a file. Raises: InputError where it cannot be read, or holds none."""
    try:
        found = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"API key file {path}: cannot be read: {reason}") from None
    if not found.isascii() or not found.isprintable() or not found or " " in found:
        raise InputError(f"API key file {path}: expected one line, er_…, and nothing else")
    return found


def _await_start(cluster: ClusterState, url: str) -> None:
    """Return when the ingress answers, or has had its time."""
    from eagleray.cluster.probing import answers

    is_said = False
    while time.time() - cluster.created_s <= STARTING_S:
        if cluster.admin_key_path.exists() and answers(f"{url}/v2/health/live"):
            return
        if not is_said:
            click.echo(f"waiting for the ingress of cluster {cluster.name!r} to start", err=True)
        is_said = True
        time.sleep(_POLL_S)
