"""One model version as a Serve application without a route; the serving controller makes one of each.

`serve run serve_apps.model:app url=FOLDER` has replicas of it that only handles reach: gateways know of those
alone that the controller deploys.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from eagleray.serving import model_app
from eagleray.serving.replica.listening import frame_bytes
from eagleray.serving.services import LINK_KEY_BYTES
from eagleray.serving.state import Limits
from eagleray.specs import ServiceSpec, validate


def app(args: Mapping[str, Any]) -> Any:
    """The application of the package at `args["url"]`; its other values are those of a service spec."""
    values = {key: value for key, value in args.items() if key not in ("url", "digest")}
    spec = validate(ServiceSpec, {"kind": "service", "name": "model", **values}, name="serve_apps/model.py")
    # A key that nobody else has.
    links = {
        "key": secrets.token_hex(LINK_KEY_BYTES),
        "max_frame_bytes": frame_bytes(Limits().max_body_bytes),
    }
    return model_app.build(spec, model_app.arguments_of(spec, args["url"], args.get("digest"), links))
