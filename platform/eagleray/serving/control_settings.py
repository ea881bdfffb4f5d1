"""What the controller is started with, and how it is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eagleray.serving.gateway.settings import GatewaySettings
from eagleray.serving.state import Limits

CONTROLLER = "eagleray-controller"
INGRESS_APP = "ingress"


def url_of(host: str, port: int, *, is_tls: bool = False) -> str:
    """The address of an ingress; an IPv6 host stands in brackets there."""
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@dataclass(frozen=True)
class ControllerSettings:
    """Where things are, for one cluster."""

    cluster: str
    directory: str
    """Of the controller's record, on the head; it outlives the controller."""
    admin_key_path: str
    """Where the local commands find the first admin key; empty: nobody on the head needs one."""
    host: str
    port: int
    """Of the ingress."""
    storage_url: str
    tracking_uri: str
    is_key_needed_for_infer: bool = False
    limits: Limits = field(default_factory=Limits)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    serve_port: int = 0
    """Of Serve's own proxy, on loopback, which has no route of ours; 0 takes any free one."""

    @property
    def record_path(self) -> Path:
        """The file of the controller's record."""
        return Path(self.directory) / "record.json"

    @property
    def admin_key(self) -> Path:
        """The file of the first admin key."""
        return Path(self.admin_key_path)

    @property
    def url(self) -> str:
        """Of the ingress, for clients."""
        return url_of(self.host, self.port, is_tls=self.gateway.is_tls)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ControllerSettings:
        """What `to_json` gave."""
        return cls(
            **{
                **values,
                "limits": Limits(**values["limits"]),
                "gateway": GatewaySettings.from_json(values.get("gateway", {})),
            }
        )
