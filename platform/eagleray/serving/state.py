"""`IngressState`: all that an ingress has to know, as one value that the controller pushes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from eagleray.serving.keys import KeyRing
from eagleray.serving.routes import Routes


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    max_body_bytes: int = 16 * 2**20
    timeout_s: float = 60.0
    """Until an answer, waiting for a replica included."""


@dataclass(frozen=True)
class IngressState:
    """Swapped as a whole (`app.state = …`): a request sees one state from its start to its end."""

    routes: Routes = field(default_factory=Routes)
    keys: KeyRing = field(default_factory=KeyRing)
    is_key_needed_for_infer: bool = False
    """True where others than this machine reach the ingress."""
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "routes": self.routes.to_json(),
            "keys": self.keys.to_json(),
            "is_key_needed_for_infer": self.is_key_needed_for_infer,
            "limits": asdict(self.limits),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IngressState:
        """What `to_json` gave."""
        return cls(
            routes=Routes.from_json(values["routes"]),
            keys=KeyRing.from_json(values["keys"]),
            is_key_needed_for_infer=bool(values["is_key_needed_for_infer"]),
            limits=Limits(**values["limits"]),
        )
