"""`GatewayOrders`: what an operator asked of the gateways while they run, beside what the spec says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from eagleray.errors import InputError
from eagleray.serving.gateway.settings import GatewaySettings

MOST = 64
"""Gateways of one cluster."""


@dataclass(frozen=True)
class GatewayOrders:
    """Part of the controller's record."""

    restarts: int = 0
    """How often all of them were replaced for the asking."""
    number: int = 0
    """How many there are to be; 0: as many as the spec says."""
    instead_of: int = 0
    """The spec's number when that was asked for: another one in the spec counts again."""

    def carried_out(self, settings: GatewaySettings) -> GatewaySettings:
        """The spec's settings with what was asked for."""
        if self.number and self.instead_of == settings.number:
            return replace(settings, number=self.number)
        return settings

    def restart(self) -> GatewayOrders:
        """Replace all of them once more."""
        return replace(self, restarts=self.restarts + 1)

    def scale(self, number: int, settings: GatewaySettings) -> GatewayOrders:
        """Have so many of them; `settings` are the spec's. Raises: InputError."""
        if not 1 <= number <= MOST:
            raise InputError(f"number: {number} gateways; there may be 1 to {MOST}")
        return replace(self, number=number, instead_of=settings.number)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GatewayOrders:
        """What `to_json` gave."""
        return cls(**values)
