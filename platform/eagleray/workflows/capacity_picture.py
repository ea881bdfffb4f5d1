"""The picture of who held what: `python -m eagleray.workflows.capacity_picture [options] OUT.png`.

Reads the ledger's event log in EAGLERAY_STORAGE; needs no cluster, and may run while one goes on.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from eagleray.cluster import event_log, settings
from eagleray.errors import EaglerayError, InputError
from eagleray.evaluation.holdings import plot_holdings
from eagleray.packaging import Folder


def draw(
    path: Path, *, cluster: str, since_s: float = 0.0, until_s: float | None = None, resource: str = "CPU"
) -> int:
    """Draw the log of the cluster called `cluster` into `path`; returns the number of events that are shown.

    The log is read from its beginning: who has held something since then tells nothing of it later.

    Raises:
        InputError: there is no such log, it is damaged, or of another schema.
        OSError: the storage cannot be read, or the picture not be written.
    """
    logs = Folder(settings.storage_url()).child("ledger")
    if cluster not in logs.list():
        known = ", ".join(logs.list()) or "none"
        raise InputError(f"no event log of a cluster called {cluster!r} in {logs.url}; there are: {known}")
    url = event_log.url_of(settings.storage_url(), cluster)
    names: dict[str, str] = {}
    read = event_log.read(url, names=names)
    events = [event for event in read if until_s is None or event.time_s <= until_s]
    shown = sum(event.time_s >= since_s for event in events)
    began_at = max(since_s, events[0].time_s) if events else since_s
    title = f"{cluster}: who held what, from {datetime.datetime.fromtimestamp(began_at):%Y-%m-%d %H:%M:%S}"
    plot_holdings(events, path, title=title, resource=resource, names=names, since_s=since_s, until_s=until_s)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("capacity_picture", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--cluster", default="default", help="its name (default: %(default)s)")
    parser.add_argument("--since", type=float, metavar="MINUTES", help="leave out what was longer ago")
    parser.add_argument("--resource", default="CPU", help="CPU, GPU or one of your own (default: CPU)")
    given = parser.parse_args(arguments)
    now_s = time.time()
    window = (0.0, None) if given.since is None else (now_s - 60 * given.since, now_s)
    try:
        count = draw(
            given.out, cluster=given.cluster, since_s=window[0], until_s=window[1], resource=given.resource
        )
    except (EaglerayError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, EaglerayError) else 1
    print(f"{given.out}: {count} events")
    return 0


if __name__ == "__main__":
    sys.exit(main())
