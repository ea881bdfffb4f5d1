"""Which ingresses read the controller's state, and what they no longer use."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

_QUIET_S = 2.0
_SILENT_S = 30.0


@dataclass(frozen=True)
class Reader:
    """An ingress, as it last said of itself."""

    heard_s: float
    """Monotonic time."""
    drained: frozenset[str]
    """Applications on which it has no request under way, nor will have."""


@dataclass
class Readers:
    """All ingresses that were heard of lately. One that is cut off is forgotten after 30 s."""

    found: dict[str, Reader] = field(default_factory=dict)

    def heard(self, reader: str, drained: Collection[str], now_s: float) -> None:
        """Take down what an ingress says."""
        self.found[reader] = Reader(now_s, frozenset(drained))

    def forget(self, reader: str) -> None:
        """The ingress has ended."""
        self.found.pop(reader, None)

    def quiet(self, now_s: float) -> list[str]:
        """Ingresses that have said nothing for 2 s; while an application drains, each does all the time."""
        return [name for name, reader in self.found.items() if now_s - reader.heard_s > _QUIET_S]

    def drained(self, now_s: float) -> frozenset[str]:
        """Applications that no ingress uses any more; none where no ingress is known."""
        self.found = {
            name: reader for name, reader in self.found.items() if now_s - reader.heard_s < _SILENT_S
        }
        sets = [reader.drained for reader in self.found.values()]
        return frozenset.intersection(*sets) if sets else frozenset()
