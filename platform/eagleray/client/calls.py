"""The SDK's calls without a connection: what is sent, and what the answer means.

`Client` and `AsyncClient` differ in how they wait, and in nothing else.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import httpx
import numpy as np

from eagleray.client import inputs as preparing
from eagleray.client import results
from eagleray.client.environment import is_http_address, is_loopback
from eagleray.client.errors import BusyError, NoAnswerError, TryAgainError, refusal
from eagleray.errors import EaglerayError, InputError, ServiceError
from eagleray.protocol import binary, infer, openai_answers
from eagleray.protocol.generation import GenerationRequest

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 60.0
CONNECT_S = 5.0
LONGEST_S = 1e6
"""A longer limit, infinity too, is this one: the system's own clocks take no more."""
MAX_ATTEMPTS = 5
MAX_CONNECTIONS = 256
"""Of one client; idle ones are kept for the next requests."""
_FIRST_WAIT_S = 0.1
_SPREAD = 1.1
"""Of the times that a server names: not everybody it has refused comes again at once."""
JSON = "application/json"
IDEMPOTENCY_KEY = "idempotency-key"
"""The same for every attempt of one inference or text: a server can tell a repetition from a new one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Where the ingress is, and how long to wait for it."""

    url: str
    key: str | None
    timeout_s: float
    max_attempts: int

    @classmethod
    def of(cls, url: str | None, key: str | None, timeout_s: float, max_attempts: int) -> Settings:
        """What was given, else what EAGLERAY_URL and EAGLERAY_KEY say. Raises: InputError."""
        url = (url or os.environ.get("EAGLERAY_URL") or DEFAULT_URL).rstrip("/")
        if not is_http_address(url):
            raise InputError(f"url {url!r}: expected http://HOST:PORT, the ingress's own")
        if not timeout_s > 0 or max_attempts < 1:
            raise InputError(f"timeout_s is {timeout_s} and max_attempts {max_attempts}; give more than 0")
        key = (key or os.environ.get("EAGLERAY_KEY") or "").strip()
        if not all("!" <= letter <= "~" for letter in key):
            raise InputError("the API key is none: expected er_… in one line; see EAGLERAY_KEY, or key")
        return cls(url, key or None, timeout_s, max_attempts)

    @property
    def connection(self) -> dict[str, Any]:
        """How httpx's clients are made."""
        return {
            "headers": {"authorization": f"Bearer {self.key}"} if self.key else {},
            "timeout": None,  # each request has its own
            "limits": httpx.Limits(
                max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS
            ),
            "trust_env": not is_loopback(self.url),
            "verify": _verification(self.url),
        }

    def no_answer(self, error: Exception) -> NoAnswerError:
        """For a connection that failed."""
        reason = str(error) or type(error).__name__
        is_default = self.url == DEFAULT_URL and not os.environ.get("EAGLERAY_URL")
        source = ", which is asked where EAGLERAY_URL is not set," if is_default else ""
        return NoAnswerError(
            f"no ingress answers at {self.url}{source} ({reason}); `eagleray status` shows what runs here"
        )


class RawAnswer(NamedTuple):
    """An answer as it came."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One exchange: what is sent, and what its answer means."""

    method: str
    path: str
    read: Callable[[Any], T]
    """From the answer: a RawAnswer where `is_raw`, else its JSON."""
    content: bytes | None = None
    media_type: str = JSON
    """Of `content`."""
    is_idempotent: bool = True
    """Whether doing it twice is as good as once: then a broken connection is no reason to give up."""
    is_raw: bool = False
    answers: tuple[int, ...] = ()
    """Statuses beyond 2xx that are answers too."""
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Of the request."""
        typed = {"content-type": self.media_type} if self.content is not None else {}
        return {**typed, **self.more_headers}

    def result(self, status: int, headers: Mapping[str, str], body: bytes, url: str) -> T:
        """What the answer means. Raises: the EaglerayError that it stands for."""
        if status >= 300 and status not in self.answers:
            raise refusal(status, headers, body, url)
        try:
            return self.read(RawAnswer(body, headers) if self.is_raw else infer.loads(body, "the answer"))
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise ServiceError(f"{url}{self.path}: not our ingress's answer ({error})") from None

    def wait_s(self, error: EaglerayError, attempt: int, left_s: float) -> float | None:
        """Seconds until the next attempt; None where there is to be none."""
        if isinstance(error, BusyError):
            # The server refused before it began, so this is right for any call; it says when, we obey.
            wait_s = error.retry_after_s
            if wait_s is None and not self.is_idempotent:
                return None
        elif isinstance(error, TryAgainError) and self.is_idempotent:
            wait_s = error.retry_after_s
        elif isinstance(error, NoAnswerError) and self.is_idempotent:
            wait_s = None
        else:
            return None
        if wait_s is None:
            wait_s = _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0)
        elif wait_s < left_s:  # others were told the same
            wait_s = min(wait_s * random.uniform(1.0, _SPREAD), (wait_s + left_s) / 2)
        return wait_s if wait_s < left_s else None


@functools.lru_cache(maxsize=256)
def _verification(url: str) -> ssl.SSLContext | bool:
    """What a server's certificate is held against."""
    if not url.startswith("https:"):
        return False  # there is nothing to verify, and no need of 20 ms to load certificates
    # httpx looks at SSL_CERT_FILE where it looks at proxies too, which is not on loopback.
    own = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=own) if own else True


def parsed(url: str) -> httpx.URL:
    """The address as httpx wants it: parsing one anew for every request would cost 30 us each time."""
    return httpx.URL(url)


def model_path(model: str) -> str:
    """As a path has it: digits, digits@candidate, digits/versions/3."""
    name, separator, version = model.partition("/versions/")
    path = segment(name, safe="@")
    return f"{path}{separator}{segment(version)}" if separator else path


def segment(text: str, safe: str = "") -> str:
    """As one part of a path has it: dots alone too, which would lead to another path.

    Raises:
        InputError: it is empty, and the path would be that of all.
    """
    if not text:
        raise InputError("a name is empty; give that of a model, such as digits, or of what is asked for")
    quoted = quote(text, safe=safe, errors="replace")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def metadata(model: str) -> Call[tuple[results.Tensor, ...]]:
    """What a model takes."""
    return Call(
        "GET", f"/v2/models/{model_path(model)}", lambda values: tuple(map(results.tensor, values["inputs"]))
    )


def extensions() -> Call[tuple[str, ...]]:
    """What the server announces beyond the protocol's core."""
    return Call("GET", "/v2", lambda values: tuple(values["extensions"]))


@dataclass(frozen=True)
class Known:
    """What a client has asked of a model's server, once."""

    inputs: tuple[results.Tensor, ...]
    is_binary: bool
    """Whether tensors may go as raw bytes."""

    @classmethod
    def of(cls, inputs: tuple[results.Tensor, ...], announced: Sequence[str]) -> Known:
        """From the answers to `metadata` and to `extensions`."""
        return cls(inputs, binary.EXTENSION in announced)


def predict(model: str, inputs: Any, known: Known, outputs: Sequence[str]) -> Call[results.Prediction]:
    """Inference. Raises: InputError where the inputs do not fit."""
    parameters = {infer.BINARY_OUTPUT: True} if known.is_binary else {}
    arrays = preparing.prepare(inputs, known.inputs)
    request = infer.InferRequest(arrays, tuple(outputs), parameters=parameters)
    written = binary.write_request(request, lambda _: known.is_binary)
    # Packing costs more time than sending does, but on the slowest lines.
    headers = {**_new_key(), "accept-encoding": "identity"}
    if written.json_bytes is not None:
        headers[binary.HEADER] = str(written.json_bytes)
    media_type = JSON if written.json_bytes is None else binary.MEDIA_TYPE

    def read(answer: RawAnswer) -> results.Prediction:
        found = binary.read_response(answer.body, answer.headers.get(binary.HEADER))
        # Raw values are views of the body, which nobody may write to; a result is its owner's.
        owned = {name: np.require(array, requirements=["A", "W"]) for name, array in found.outputs.items()}
        return results.Prediction(found.model_name, int(found.model_version), owned)

    path = f"/v2/models/{model_path(model)}/infer"
    return Call("POST", path, read, written.body, media_type, is_raw=True, more_headers=headers)


def predict_file(model: str, body: bytes, media_type: str) -> Call[dict[str, Any]]:
    """The answer for people. Raises: InputError where no header can carry the media type."""
    if not media_type or not all(" " <= letter <= "~" for letter in media_type):
        raise InputError(f"media_type is {media_type[:60]!r}; give one as image/png or text/csv")
    path = f"/models/{model_path(model)}:predict"
    return Call("POST", path, dict, body, media_type, more_headers=_new_key())


def _new_key() -> dict[str, str]:
    return {IDEMPOTENCY_KEY: secrets.token_hex(16)}


def generate(model: str, request: GenerationRequest) -> Call[results.Generation]:
    """A whole text."""

    def read(values: Any) -> results.Generation:
        chunk = openai_answers.read_answer(values)
        reason = str(chunk.finish_reason)
        return results.Generation(model, chunk.text, reason, chunk.prompt_tokens, chunk.completion_tokens)

    body = openai_answers.write_completion(model, request, is_streamed=False)
    return Call("POST", "/v1/completions", read, body, more_headers=_new_key())


def stream(model: str, request: GenerationRequest) -> Call[None]:
    """A text piece by piece; only its refusal is read here: what breaks off later is not asked again."""
    body = openai_answers.write_completion(model, request, is_streamed=True)
    return Call("POST", "/v1/completions", lambda _: None, body, more_headers=_new_key())


def models() -> Call[list[results.Model]]:
    """What is deployed."""
    return Call("GET", "/models", lambda values: [results.model(entry) for entry in values["models"]])


def model(name: str) -> Call[results.Model]:
    """One deployed model."""
    return Call("GET", f"/models/{segment(name, safe='@')}", results.model)


def runs(name: str | None, limit: int) -> Call[list[results.Run]]:
    """The newest training runs."""
    asked = {"limit": str(limit)} | ({} if name is None else {"name": name})
    return Call(
        "GET",
        f"/admin/runs?{urlencode(asked, errors='replace')}",
        lambda values: [results.run(entry) for entry in values["runs"]],
    )


def ready(model: str | None) -> Call[bool]:
    """Whether the server, or one model, can answer now."""
    path = "/v2/health/ready" if model is None else f"/v2/models/{model_path(model)}/ready"
    return Call("GET", path, lambda values: bool(values.get("ready")), answers=(503,))
