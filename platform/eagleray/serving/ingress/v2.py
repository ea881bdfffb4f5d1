"""Open Inference v2 over JSON: health, metadata, inference."""

from __future__ import annotations

import eagleray
from eagleray.errors import EaglerayError, InputError
from eagleray.protocol import infer as protocol
from eagleray.protocol import tensors
from eagleray.serving.ingress import schemas
from eagleray.serving.ingress.call import Call, named
from eagleray.serving.ingress.http import JSON, HttpError, Response, json_response
from eagleray.serving.ingress.routing import Route
from eagleray.serving.routes import Target

TAG = "Open Inference v2"
PLATFORM = "eagleray_safetensors"
EXTENSIONS: tuple[str, ...] = ()
"""Of the protocol; none yet (binary tensors will be one)."""


async def live(call: Call) -> Response:
    """The server answers."""
    return json_response({"live": True})


async def ready(call: Call) -> Response:
    """Every model's default version can answer."""
    routes = call.state.routes.models.values()
    waiting = sum(route.versions[route.default].state != "ready" for route in routes)
    if waiting:  # without names: this route asks for no key
        return json_response({"ready": False, "error": f"{waiting} of {len(routes)} models not ready"}, 503)
    return json_response({"ready": True})


async def server(call: Call) -> Response:
    """What this server is."""
    values = {"name": "eagleray", "version": eagleray.__version__, "extensions": list(EXTENSIONS)}
    return json_response(values)


async def model_ready(call: Call) -> Response:
    """Whether this version can answer."""
    target = call.find()
    if target.state == "ready":
        return json_response({"name": target.name, "ready": True})
    why = f": {target.message}" if target.message else ""
    values = {"name": target.name, "ready": False, "error": f"{named(target)} is {target.state}{why}"}
    return json_response(values, 503)


async def model(call: Call) -> Response:
    """Inputs and outputs of this version, and the versions there are."""
    target = call.find()
    card = target.card
    return json_response(
        {
            "name": target.name,
            "versions": [str(version) for version in sorted(call.state.routes.models[target.name].versions)],
            "platform": PLATFORM,
            "inputs": [tensor.model_dump(mode="json") for tensor in card.inputs],
            "outputs": [tensor.model_dump(mode="json") for tensor in card.outputs],
            "properties": {
                "version": str(target.version),
                "digest": target.digest,
                "generative": "true" if card.is_generative else "false",
            },
        }
    )


async def infer(call: Call) -> Response:
    """The model's outputs for the given inputs."""
    target = call.ready()
    if "inference-header-content-length" in call.request.headers:
        raise HttpError(400, "binary tensors are not supported yet; send JSON (binary_data=False)")
    request = await call.decoded(protocol.read_request)
    tensors.check(request.inputs, target.card.inputs)
    _check_wanted(request.outputs, target)
    outputs = await call.infer(target, request.inputs)
    response = protocol.InferResponse(
        model_name=target.name,
        model_version=str(target.version),
        outputs=protocol.select(outputs, request.outputs),
        id=request.id,
    )
    return Response(encoded(response, target))


def encoded(response: protocol.InferResponse, target: Target) -> bytes:
    """The response as JSON. Raises: EaglerayError (500) where it has NaN: that is not the caller's fault."""
    try:
        return protocol.write_response(response)
    except InputError as error:
        raise EaglerayError(f"{named(target)} gave no usable answer: output {error}") from None


def _check_wanted(wanted: tuple[str, ...], target: Target) -> None:
    given = [tensor.name for tensor in target.card.outputs]
    for name in wanted:
        if name not in given:
            raise InputError(f"output {name[:60]!r} is not known; this model gives: {', '.join(given)}")


def routes() -> list[Route]:
    """The routes of this page; those of inference first."""
    found = [
        Route(
            "POST", f"{path}/infer", infer, "Infer", TAG,
            accepts={JSON: schemas.INFER_REQUEST}, answer=schemas.INFER_RESPONSE,
        )
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    ]  # fmt: skip
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found.append(Route("GET", path, model, "Inputs and outputs", TAG, answer=schemas.MODEL_METADATA))
        found.append(Route("GET", f"{path}/ready", model_ready, "Is this model ready?", TAG))
    return [
        *found,
        Route("GET", "/v2", server, "What this server is", TAG, answer=schemas.SERVER_METADATA),
        Route("GET", "/v2/health/live", live, "Does the server answer?", TAG, scope=None),
        Route("GET", "/v2/health/ready", ready, "Are all models ready?", TAG, scope=None),
    ]
