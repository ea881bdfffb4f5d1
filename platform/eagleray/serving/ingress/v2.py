"""Open Inference v2: health, metadata, inference; tensors as JSON or as raw bytes behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import eagleray
from eagleray.errors import EaglerayError, InputError
from eagleray.protocol import binary, fast, tensors
from eagleray.protocol import infer as protocol
from eagleray.protocol.tensors import Array
from eagleray.serving.ingress import cached, schemas
from eagleray.serving.ingress.call import OFF_LOOP_BYTES, Call, named
from eagleray.serving.ingress.http import JSON, Response, json_response
from eagleray.serving.ingress.routing import Route
from eagleray.serving.routes import Target

TAG = "Open Inference v2"
PLATFORM = "eagleray_safetensors"
EXTENSIONS: tuple[str, ...] = (binary.EXTENSION,)
"""Of the protocol."""
OFF_LOOP_VALUES = 2**14
"""Of an answer's JSON: from here on it is written in a thread."""


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
    if target.cache_bytes:  # the body is not to stay here while others' answer is waited for
        return await cached.answer(call, target, await call.body(), _infer)
    return await _infer(call, target, await call.body())


async def _infer(call: Call, target: Target, body: bytes) -> Response:
    request = await _request(call, body)
    tensors.check(request.inputs, target.card.inputs)
    check_wanted(request.outputs, target)
    outputs = await call.infer(target, request.inputs)
    response = response_of(target, request, outputs)
    if num_slow(response, request) < OFF_LOOP_VALUES:
        answer = answer_of(response, request, target)
    else:
        answer = await asyncio.to_thread(answer_of, response, request, target)
    await answer.pack(call.request)
    return answer


def response_of(
    target: Target, request: protocol.InferRequest, outputs: dict[str, Array]
) -> protocol.InferResponse:
    """The outputs that were asked for, with what the protocol says beside them."""
    return protocol.InferResponse(
        model_name=target.name,
        model_version=str(target.version),
        outputs=protocol.select(outputs, request.outputs),
        id=request.id,
    )


async def _request(call: Call, body: bytes) -> protocol.InferRequest:
    header = call.request.headers.get(binary.HEADER)
    try:
        return fast.read_request(body, header, quick_bytes=OFF_LOOP_BYTES)
    except binary.TakesLong:
        return await asyncio.to_thread(fast.read_request, body, header)


def num_slow(response: protocol.InferResponse, request: protocol.InferRequest) -> int:
    """Values of the answer that are written one by one."""
    num = 0
    for name, array in response.outputs.items():
        if array.dtype.kind in "OUS" or not request.is_binary(name):
            num += array.size
    return num


def answer_of(response: protocol.InferResponse, request: protocol.InferRequest, target: Target) -> Response:
    """The response in the form that was asked for. Raises: EaglerayError (500) as `encoded`."""
    written = _written(response, request.is_binary, target)
    if written.json_bytes is None:
        return Response(written.body)
    headers = {binary.HEADER: str(written.json_bytes)}
    return Response(written.body, media_type=binary.MEDIA_TYPE, headers=headers)


def encoded(response: protocol.InferResponse, target: Target) -> bytes:
    """The response as JSON. Raises: EaglerayError (500) where it has NaN: that is not the caller's fault."""
    return _written(response, lambda _: False, target).body


def _written(
    response: protocol.InferResponse, is_binary: Callable[[str], bool], target: Target
) -> binary.Written:
    try:
        return fast.write_response(response, is_binary)
    except InputError as error:
        raise EaglerayError(f"{named(target)} gave no usable answer: output {error}") from None


def check_wanted(wanted: tuple[str, ...], target: Target) -> None:
    """Raises: InputError where an output is asked for that there is not."""
    if not wanted:
        return
    given = [tensor.name for tensor in target.card.outputs]
    for name in wanted:
        if name not in given:
            raise InputError(f"output {name[:60]!r} is not known; this model gives: {', '.join(given)}")


def routes() -> list[Route]:
    """The routes of this page; those of inference first."""
    found = [
        Route(
            "POST", f"{path}/infer", infer, "Infer", TAG,
            accepts={JSON: schemas.INFER_REQUEST, binary.MEDIA_TYPE: schemas.BINARY},
            answer=schemas.INFER_RESPONSE,
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
