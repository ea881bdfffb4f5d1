"""From the ingress's refusals to our errors.

InputError                 400, 405, 413, 415, 421  the request cannot be right
├── ModelNotFound          404                  no model, version, alias, key of that name
AuthError                  401, 403             no key, a wrong one, or one for something else
CapacityError              409                  the cluster's node types can never place it
ServiceError               5xx                  the server, or a replica, failed
├── BusyError              429, 503             not now; `retry_after_s` says when. A 503 of the ingress's own
│                                               without Retry-After (a version that failed) is a ServiceError
├── TryAgainError      502                  a replica was lost, and another will answer: with Retry-After only
├── TookTooLongError       408, 504             no answer within the time limit
└── NoAnswerError          -                    nothing answers at the address
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eagleray.client.jobs import NoAnswerError
from eagleray.errors import (
    AuthError,
    CapacityError,
    EaglerayError,
    InputError,
    ModelNotFound,
    ServiceError,
)

__all__ = ["BusyError", "NoAnswerError", "TookTooLongError", "TryAgainError", "refusal"]


class BusyError(ServiceError):
    """The server takes no more for now."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When it is worth another try, where the server said so."""


class TookTooLongError(ServiceError):
    """No answer within the time limit."""


class TryAgainError(ServiceError):
    """What worked on it is gone (HTTP 502), and the server says when another will."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


_KINDS: Mapping[int, type[EaglerayError]] = {
    401: AuthError,
    403: AuthError,
    404: ModelNotFound,
    408: TookTooLongError,
    409: CapacityError,
    504: TookTooLongError,
}


def refusal(status: int, headers: Mapping[str, str], body: bytes, address: str) -> EaglerayError:
    """The error that an answer with this status stands for, in the server's own words."""
    message = _message(body) or f"no reason given (HTTP {status})"
    if status == 429 or (status == 503 and _is_worth_another_try(headers, body)):
        return BusyError(message, _retry_after_s(headers))
    if status == 502 and (retry_after_s := _retry_after_s(headers)) is not None:
        return TryAgainError(message, retry_after_s)
    if status == 401:
        message += f"; put it in EAGLERAY_KEY, or give it as Client({address!r}, key=…)"
    kind = _KINDS.get(status, InputError if status < 500 else ServiceError)
    return kind(message)


def _is_worth_another_try(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a 503 is for now only: the ingress then says when; proxies before it need not."""
    return "retry-after" in headers or not _is_in_our_form(body)


def _is_in_our_form(body: bytes) -> bool:
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "error" in values


def _message(body: bytes) -> str:
    """The server's words: ours, OpenAI's form of them, or what a proxy in between wrote."""
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip()[:500]
    error = values.get("error") if isinstance(values, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else ""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue  # also a date, which is allowed, and which we never send
    return None
