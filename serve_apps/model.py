"""One model version as a Serve application without a route; the serving controller makes one of each."""

from collections.abc import Mapping
from typing import Any

from eagleray.serving import model_app
from eagleray.specs import ServiceSpec, validate


def app(args: Mapping[str, Any]) -> Any:
    """The application of the package at `args["url"]`; its other values are those of a service spec."""
    values = {key: value for key, value in args.items() if key not in ("url", "digest")}
    spec = validate(ServiceSpec, {"kind": "service", "name": "model", **values}, name="serve_apps/model.py")
    return model_app.build(spec, model_app.arguments_of(spec, args["url"], args.get("digest")))
