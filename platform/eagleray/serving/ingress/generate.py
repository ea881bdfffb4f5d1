"""Open Inference v2's routes for models that generate text: a whole answer, and server-sent events."""

from __future__ import annotations

from eagleray.protocol import generate as protocol
from eagleray.serving.ingress import schemas
from eagleray.serving.ingress.call import Call, named
from eagleray.serving.ingress.generating import begin, check_generative, collect, streamed
from eagleray.serving.ingress.http import EVENT_STREAM, JSON, HttpError, Response, Stream, json_response
from eagleray.serving.ingress.routing import Route
from eagleray.serving.ingress.v2 import TAG
from eagleray.serving.transport import ReplicaFailed

ERRORS = {
    422: "the request will not do",
    424: "the model failed at it",
    429: "the model, or the key, has no room for it now",
    500: "only a part of the answer was made",
}
"""Of the contract, in place of what other routes answer with 400, 502 and 503."""


async def generate(call: Call) -> Response:
    """The text as a whole."""
    target = call.ready()
    check_generative(target)
    request = await call.decoded(protocol.read_request)
    try:
        chunks = await collect(call, target, request)
    except ReplicaFailed as error:
        if not call.num_tokens:
            raise
        raise HttpError(500, f"{named(target)} gave only a part of its answer: {error}") from error
    return json_response(protocol.whole(target.name, str(target.version), request, chunks))


async def generate_stream(call: Call) -> Stream:
    """The text as it is made."""
    target = call.ready()
    check_generative(target)
    request = await call.decoded(protocol.read_request)
    chunks = await begin(call, target, request)
    return streamed(protocol.GenerateEvents(target.name, str(target.version)), chunks, call)


def routes() -> list[Route]:
    """The routes of this page."""
    found = []
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        for name, handler, media_type in (
            ("generate", generate, JSON),
            ("generate_stream", generate_stream, EVENT_STREAM),
        ):
            found.append(
                Route(
                    "POST",
                    f"{path}/{name}",
                    handler,
                    "Generate text" if media_type == JSON else "Generate text, piece by piece",
                    TAG,
                    accepts={JSON: schemas.GENERATE},
                    answer=schemas.GENERATED,
                    media_type=media_type,
                    errors=ERRORS,
                )
            )
    return found
