"""From an exception to an answer: its status, its message, its headers."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

from eagleray.errors import (
    AuthError,
    CapacityError,
    EaglerayError,
    InputError,
    ModelNotFound,
    PackageError,
    ServiceError,
)
from eagleray.protocol.generation import FieldError
from eagleray.protocol.openai_answers import error_object
from eagleray.serving.admission.refusal import retry_headers
from eagleray.serving.ingress.http import HttpError, Response, json_response
from eagleray.serving.keys import WrongScope
from eagleray.serving.transport import Overloaded, ReplicaFailed

_log = logging.getLogger("eagleray.ingress")

# The first that fits; a class comes before its bases.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ModelNotFound, 404),
    (InputError, 400),
    (WrongScope, 403),
    (AuthError, 401),
    (CapacityError, 409),
    (PackageError, 422),
    (Overloaded, 503),
    (ReplicaFailed, 502),
    (ServiceError, 503),
    (EaglerayError, 500),
)

_GENERATE = ("/generate", "/generate_stream", "/generate/", "/generate_stream/")
_GENERATE_STATUS = {400: 422, 502: 424}
"""Source: generate_rest.yaml of github.com/kserve/open-inference-protocol."""


@dataclass(frozen=True)
class Failure:
    """What goes wrong, as HTTP says it."""

    status: int
    message: str
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    field: str | None = None
    """Of the request, where one is to blame."""


def failure(error: Exception, request_id: str) -> Failure:
    """How `error` is answered; one that is not meant to be read is logged, and told by its request's id."""
    if isinstance(error, HttpError):
        return Failure(error.status, str(error), error.headers)
    for kind, status in _STATUS:
        if isinstance(error, kind):
            blamed = error.field if isinstance(error, FieldError) else None
            return Failure(status, str(error), _headers(error, status), blamed)
    _log.error("request %s failed", request_id, exc_info=error)
    return Failure(500, f"the ingress failed; its log has the reason under request {request_id}")


def response(failure: Failure, path: str) -> Response:
    """The failure in the form that the clients of the route at `path` know."""
    status = failure.status
    if path.startswith("/v1/"):
        found = json_response(error_object(status, failure.message, field=failure.field), status)
    else:
        if path.endswith(_GENERATE) and path.startswith("/v2/models/"):
            status = _GENERATE_STATUS.get(status, status)
            if status == 503 and "retry-after" in failure.headers:
                status = 429
        found = json_response({"error": failure.message}, status)
    found.headers.update(failure.headers)
    return found


def _headers(error: Exception, status: int) -> dict[str, str]:
    if status == 401:
        return {"www-authenticate": 'Bearer realm="eagleray"'}
    if isinstance(error, Overloaded | ReplicaFailed) and error.retry_after_s is not None:
        return retry_headers(error.retry_after_s)
    return {}
