"""A home and a local cluster of a benchmark's own; what a killed one left behind is ended by the next."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.checkout import ROOT

CLUSTER = "bench"
"""Its name, in each home."""


class Homes:
    """The homes of one benchmark's runs, which may be under way beside each other.

    Args:
        name: In their paths, and in the markers of what a run starts itself.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder = Path(tempfile.gettempdir()) / f"eagleray-{name}-{os.getuid()}"

    @contextmanager
    def home(self) -> Iterator[Path]:
        """An EAGLERAY_HOME of this process alone; at the end what runs in it is ended, and it is removed."""
        from eagleray.cluster import processes

        self._end_leftovers()
        me = processes.this_process()
        folder = self._folder / f"{me.pid}-{me.start}"
        folder.mkdir(parents=True, mode=0o700)
        os.environ["EAGLERAY_HOME"] = str(folder)
        os.environ["EAGLERAY_STORAGE"] = str(folder / "storage")
        os.environ["EAGLERAY_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        try:
            yield folder
        finally:
            with processes.undisturbed():
                self._end(folder)

    def mark(self) -> str:
        """What the markers of all servers begin with that this process starts."""
        from eagleray.cluster import processes

        me = processes.this_process()
        return f"{self._name}-{me.pid}-{me.start}"

    def _end_leftovers(self) -> None:
        from eagleray.cluster import processes

        before = os.environ.get("EAGLERAY_HOME")
        for folder in self._folder.glob("*-*"):
            pid, _, start = folder.name.partition("-")
            if not processes.Process(int(pid), int(start)).is_alive:
                os.environ["EAGLERAY_HOME"] = str(folder)
                beginning = f"{processes.MARKER}={self._name}-{folder.name}".encode()
                processes.sweep(functools.partial(_marked, beginning))
                self._end(folder)
        if before is not None:
            os.environ["EAGLERAY_HOME"] = before

    def _end(self, folder: Path) -> None:
        """End the clusters of the home in the environment, and remove it."""
        from eagleray.cluster import local, state

        for name in state.names():
            local.down(name, say=lambda _: None)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def up(settings: Sequence[str]) -> Any:
    """The state of the home's cluster, started as `eagleray up` does it; `settings` as for --set."""
    from eagleray.workflows import up as starting

    return starting.up(CLUSTER, ROOT / "local.toml", settings, say=lambda _: None)


def down() -> None:
    """End the home's cluster, if there is one."""
    from eagleray.cluster import local
    from eagleray.errors import ClusterNotRunning

    with contextlib.suppress(ClusterNotRunning):
        local.down(CLUSTER, say=lambda _: None)


def _marked(beginning: bytes) -> list[Any]:
    """Processes with a word in their environment that begins so."""
    from eagleray.cluster import processes

    found = []
    for pid in processes.all_pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(word.startswith(beginning) for word in words):
                found.append(processes.of(pid))
    return found
