"""OpenAI's routes for models that generate text: whole answers, and server-sent events."""

from __future__ import annotations

from collections.abc import Callable

from eagleray.protocol import openai as protocol
from eagleray.protocol import openai_answers as answers
from eagleray.serving.ingress import schemas
from eagleray.serving.ingress.call import Call, named
from eagleray.serving.ingress.generating import begin, check_generative, collect, streamed
from eagleray.serving.ingress.http import JSON, HttpError, Response, Stream, json_response
from eagleray.serving.ingress.routing import Route

TAG = "OpenAI-compatible"


async def models(call: Call) -> Response:
    """The deployed models that generate text."""
    defaults = [route.versions[route.default] for route in call.state.routes.models.values()]
    found = [(t.name, t.card.lineage.created_at) for t in defaults if t.card.is_generative]
    return json_response(answers.model_list(sorted(found)))


async def model(call: Call) -> Response:
    """One of them, by any of its names."""
    target = call.find()
    if not target.card.is_generative:
        raise HttpError(404, f"{named(target)} does not generate text")
    asked = call.params["model"] + (f"/versions/{target.version}" if "version" in call.params else "")
    return json_response(answers.model_object(asked, target.card.lineage.created_at))


async def completions(call: Call) -> Response | Stream:
    """A prompt, gone on with."""
    return await _answered(call, protocol.read_completion)


async def chat(call: Call) -> Response | Stream:
    """The next turn of a conversation."""
    return await _answered(call, protocol.read_chat)


async def _answered(call: Call, read: Callable[[bytes], protocol.OpenAiRequest]) -> Response | Stream:
    asked = await call.decoded(read)
    target = call.ready(asked.model)
    check_generative(target)
    answer = answers.Answer(asked)
    if not asked.is_streamed:
        return json_response(answer.whole(await collect(call, target, asked.generation)))
    chunks = await begin(call, target, asked.generation)
    return streamed(answer.events(), chunks, call)


def routes() -> list[Route]:
    """The routes of this page."""
    return [
        Route("POST", "/v1/chat/completions", chat, "The next turn of a conversation", TAG,
              accepts={JSON: schemas.CHAT}, answer=schemas.OBJECT),
        Route("POST", "/v1/completions", completions, "Go on with a prompt", TAG,
              accepts={JSON: schemas.COMPLETION}, answer=schemas.OBJECT),
        Route("GET", "/v1/models", models, "Models that generate text", TAG, answer=schemas.OBJECT),
        Route("GET", "/v1/models/{model}", model, "One of them", TAG, answer=schemas.OBJECT),
        Route("GET", "/v1/models/{model}/versions/{version}", model, "One of them", TAG,
              answer=schemas.OBJECT),
    ]  # fmt: skip
