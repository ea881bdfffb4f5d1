"""The gateways as a Serve application, as the serving controller hands it to Serve; it has no route there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagleray.serving import ingress_app
from eagleray.serving.control_settings import ControllerSettings


def app(args: Mapping[str, Any]) -> Any:
    """The application for a controller's settings, as `ControllerSettings.to_json` gives them."""
    return ingress_app.build(ControllerSettings.from_json(args))
