"""What is asked of the fast lane's routes for text: read from a body, for the usual request only."""

from __future__ import annotations

from typing import NamedTuple

from eagleray.protocol import generate, openai
from eagleray.protocol.events import TextEvents
from eagleray.protocol.generation import GenerationRequest
from eagleray.protocol.openai_answers import Answer
from eagleray.serving.ingress.call import check_ready
from eagleray.serving.ingress.generating import check_generative
from eagleray.serving.routes import Target
from eagleray.serving.state import IngressState

_CHAT = "/v1/chat/completions"


class Asked(NamedTuple):
    """A text to be streamed."""

    target: Target
    request: GenerationRequest
    events: TextEvents


def read(state: IngressState, path: str, target: Target | None, body: bytes) -> Asked | None:
    """What is asked; None: an answer as a whole, or more than texts.

    `target` is the version that the path names, where it does.

    Raises: EaglerayError, as the route of the application does.
    """
    if target is not None:
        check_generative(target)
        request = generate.read_request(body)
        if request.with_tokens:
            return None
        return Asked(target, request, generate.GenerateEvents(target.name, str(target.version)))
    asked = openai.read_chat(body) if path == _CHAT else openai.read_completion(body)
    if not asked.is_streamed:
        return None
    target = state.routes.resolve(asked.model)
    check_ready(target)
    check_generative(target)
    return Asked(target, asked.generation, Answer(asked).events())
