"""`Publications`: which folders of a model's packages are being written, and what killed publishers left.

    <storage>/models/<name>/.publishing-<folder>     from before the package is written to after its version

A folder without such a note belongs to a version, of this registry or of another one in the same storage:
only what has one is ever removed.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Collection

from eagleray.packaging import Folder

ABANDONED_S = 24 * 3600.0
"""A publisher that has written nothing for so long was killed. An object store shows a file when all of it is
there, so this is also the time that one file may take."""
_NOTE = ".publishing-"


class Publications:
    """Of one model."""

    def __init__(self, folder: Folder, tracking_uri: str) -> None:
        """`folder` holds the model's packages; notes name their registry, and others' are left alone."""
        self.folder = folder
        host = f"{socket.gethostname()} " if tracking_uri.startswith("sqlite:") else ""
        # Hashed, for an address may have a password in it, and others read the storage.
        self._registry = hashlib.sha256(f"{host}{tracking_uri}".encode()).hexdigest().encode()

    def begin(self, name: str) -> Folder:
        """Note that a package is about to be written into the folder of that name, which is returned."""
        self.folder.write_bytes(_NOTE + name, self._registry)
        return self.folder.child(name)

    def end(self, name: str) -> None:
        """Its version is made, or nothing was written."""
        self.folder.remove(_NOTE + name)

    def clean(self, name: str, known: Collection[str]) -> list[str]:
        """Remove what killed publishers left; returns the names of those folders.

        Args:
            name: A publication that goes on, begun lately: its note tells the storage's own time.
            known: Names of the folders that versions of the registry refer to.

        Raises:
            OSError: the storage does not answer, or refuses.
        """
        now = self.folder.modified_at(_NOTE + name)
        names = self.folder.list()
        noted = [found.removeprefix(_NOTE) for found in names if found.startswith(_NOTE)]
        removed = []
        for other in noted:
            parts = [found for found in names if found == other or found.startswith(f".tmp-{other}-")]
            if other == name or not self._is_abandoned(other, parts, now):
                continue
            if other not in known:
                for part in parts:
                    self.folder.remove(part)
                removed.append(other)
            self.end(other)
        return removed

    def _is_abandoned(self, name: str, parts: Collection[str], now: float) -> bool:
        try:
            if self.folder.read_bytes(_NOTE + name) != self._registry:
                return False
            files = [f"{part}/{file}" for part in parts for file in self.folder.child(part).files()]
            newest = max(self.folder.modified_at(file) for file in (_NOTE + name, *files))
        except FileNotFoundError:  # it has just ended
            return False
        return now - newest > ABANDONED_S
