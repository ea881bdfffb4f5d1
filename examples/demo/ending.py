"""The end of the demo: the nodes go, everything is stopped, and a table says what happened."""

from __future__ import annotations

import signal
import threading
import time

from common import BIN, CLUSTER, Tally, console, eagleray, of_cluster, require, say, status, step
from rich.table import Table

IDLE_TIMEOUT_S = 30.0
"""That of local.toml."""
IDLE_GRACE_S = 60.0


class NodeWatcher:
    """Notes every worker node that the cluster has had, from the state on disk, twice a second."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> NodeWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        from eagleray.cluster import nodes, state

        folder = state.find(CLUSTER).nodes_dir
        while not self._stop.wait(0.5):
            self._tally.nodes_seen |= {node.node_id for node in nodes.read_all(folder)}


def wait_for_no_nodes(tally: Tally) -> None:
    """Until the autoscaler has taken the last idle node away."""
    began = time.monotonic()
    while nodes := status()["nodes"]:
        waited = time.monotonic() - began
        require(
            waited < IDLE_TIMEOUT_S + IDLE_GRACE_S,
            f"after {waited:.0f} s these nodes are still there: {nodes}",
        )
        if int(waited) % 10 == 0:
            say(f"{len(nodes)} idle nodes after {waited:.0f} s")
        time.sleep(1)
    seconds = f"{time.monotonic() - began:.0f} s"
    say(f"no worker node left after {seconds}; {len(tally.nodes_seen)} were started in all")
    tally.add("idle nodes gone after", seconds)


def is_running() -> bool:
    """Whether somebody's cluster of the demo's name runs: that one is not ours to end."""
    from eagleray.cluster import state

    found = state.read(CLUSTER)
    return found is not None and found.is_running


def left_up() -> None:
    """What to do with a cluster that was left up."""
    found = status()
    console.print(f"\n[bold]The cluster is still up.[/] Ray dashboard: {found['dashboard_url']}")
    say(f"its token (for the login page): {BIN}/eagleray env --name {CLUSTER}")
    say(f'Ray\'s own commands: eval "$({BIN}/eagleray env --name {CLUSTER})"')
    say(f"the ingress's pages: {found['ingress_url']}/docs")
    say(f"end it: {BIN}/eagleray down --name {CLUSTER}")


def take_down(tally: Tally, number: int) -> int:
    """End the cluster and look that nothing is left; returns an exit code."""
    from eagleray.cluster import ports, processes, state

    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_IGN)  # an impatient second Ctrl-C would leave half of it
    step(number, "Everything that was started is stopped")
    found = state.read(CLUSTER)
    if found is None:
        return 0
    began = time.monotonic()
    eagleray(*of_cluster("down"), check=False)
    tally.add("cluster down", f"{time.monotonic() - began:.1f} s")
    left = processes.belonging(found.marker)
    if left or found.runtime_dir.exists() or found.directory.exists():
        console.print(f"[bold red]left behind:[/] processes {left}, {found.runtime_dir}, {found.directory}")
        return 1
    if taken := [port for port in found.ports.values() if not ports.is_free(found.host, port)]:
        console.print(f"[bold red]left behind:[/] something listens on {taken}")
        return 1
    say("no process, no listening port, no temporary folder left")
    return 0


def closing(tally: Tally) -> None:
    """The table, and what to try next."""
    table = Table(title="What happened", show_header=False)
    for what, value in tally.rows:
        table.add_row(what, value)
    console.print()
    console.print(table)
    console.print("\n[bold]Next:[/]")
    if not tally.keeps_cluster:
        say(".venv/bin/eagleray up")
    for command in (
        ".venv/bin/eagleray train examples/train/digits.toml --set scaling.num_workers=1",
        ".venv/bin/eagleray deploy examples/serve/digits.toml",
        '.venv/bin/mlflow ui --backend-store-uri "sqlite:///$HOME/.eagleray/mlflow.db"',
    ):
        say(command)
