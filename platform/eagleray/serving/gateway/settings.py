"""`GatewaySettings`: how the ingress's HTTP servers are to be, beside where they listen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GatewaySettings:
    """The same for all gateways of a cluster."""

    number: int = 1
    """Processes; all of them listen on the one port."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the nodes on which they run; none: on the head."""
    max_connections: int = 4096
    """Of one gateway at one time; more are answered 503."""
    keep_alive_s: int = 65
    """A connection that asks for nothing is closed after so long: later than clients close theirs."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose X-Forwarded-For is believed."""
    tls_cert: str = ""
    """A file with the certificate, and those that lead to its root, in PEM; empty: plain HTTP."""
    tls_key: str = ""
    """A file with its private key."""

    access_log_bytes: int = 0
    """Of one gateway's access log, in the cluster's serving folder; 0: none."""

    parked_bytes: int = 256 * 2**20
    """Of bodies that wait on one gateway for models without a replica; who brings more is answered 503."""

    @property
    def is_tls(self) -> bool:
        """Whether requests come by HTTPS."""
        return bool(self.tls_cert)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GatewaySettings:
        """What `dataclasses.asdict` gave."""
        return cls(**{**values, "trusted_proxies": tuple(values.get("trusted_proxies", ()))})
