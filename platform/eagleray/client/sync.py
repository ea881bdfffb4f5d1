"""`Client`: models behind an ingress, for programs, scripts and notebooks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, overload

import httpx

from eagleray.client import calls, many
from eagleray.client.admin import Admin
from eagleray.client.calls import Call, Settings
from eagleray.client.errors import NoAnswerError, TookTooLongError
from eagleray.client.jobs import JobClient
from eagleray.client.results import Generation, Model, Prediction, Run
from eagleray.client.texts import TextPieces
from eagleray.errors import EaglerayError, InputError
from eagleray.protocol.generation import GenerationRequest

T = TypeVar("T")


class Client:
    """An ingress at `url`, with an API key where it wants one; close it, or use it in a `with` block.

    Args:
        url: `http://HOST:PORT`; where not given, `EAGLERAY_URL`, else http://127.0.0.1:8000.
        key: `er_…`; where not given, `EAGLERAY_KEY`. On the ingress's own machine only `admin` needs one.
        timeout_s: Of one method's call, its retries included.
        max_attempts: A call that the server has no room for is made again when the server says; one whose
            connection breaks, at once, unless doing it twice would do harm.

    Every method raises NoAnswerError where nothing answers, BusyError where the server has no room,
    AuthError for a missing or wrong key, TookTooLongError, and ServiceError where the server fails.
    For several threads at once.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = calls.TIMEOUT_S,
        max_attempts: int = calls.MAX_ATTEMPTS,
    ) -> None:
        self._settings = Settings.of(url, key, timeout_s, max_attempts)
        self._http = httpx.Client(**self._settings.connection)
        self._known: dict[str, calls.Known] = {}
        self._jobs: JobClient | None = None
        self.admin = Admin(self._run)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """The ingress's address."""
        return self._settings.url

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        if self._jobs is not None:
            self._jobs.close()

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Prediction:
        """The model's outputs for a sample, or for a batch of them.

        Args:
            model: "digits" (its default version), "digits@candidate" or "digits/versions/3".
            inputs: An array, or what numpy makes one of (lists, texts, tensors on the CPU); a dict by name
                where the model has several. Values are raw, as in the dataset's source.
            outputs: Names of the wanted ones; none named, all come.
            timeout_s: Instead of the client's own.

        Tensors go and come as raw bytes, or as JSON where the server does not announce that it takes them.

        Raises:
            ModelNotFound: no deployed model has that name, version or alias.
            InputError: the inputs do not fit; the message says what the model takes.
        """
        known = self._known.get(model) or self._look_up(model)
        try:
            return self._run(calls.predict(model, inputs, known, outputs), timeout_s)
        except InputError:
            # The name may lead to another version by now, which takes other inputs.
            if (found := self._look_up(model)) == known:
                raise
        return self._run(calls.predict(model, inputs, found, outputs), timeout_s)

    def predict_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        outputs: Sequence[str] = (),
        concurrency: int = many.CONCURRENCY,
        timeout_s: float | None = None,
    ) -> list[Prediction]:
        """As many predictions as `inputs` has entries, each one as `predict` makes it, in their order.

        The first one that fails ends it: nothing more is sent, what is under way is waited for (AsyncClient
        cancels it), and the error is raised with the entry's number as a note.

        Args:
            model: As for `predict`.
            inputs: Read as it is needed, no more than `concurrency` entries ahead: a generator will do.
            outputs: As for `predict`.
            concurrency: Requests under way at once, 1 to 256; each has a connection, which is kept.
            timeout_s: Of each prediction.

        Raises:
            InputError, ModelNotFound: as `predict`.
        """
        _ = self._known.get(model) or self._look_up(model)  # once, before all ask for it
        return many.in_threads(
            lambda entry: self.predict(model, entry, outputs=outputs, timeout_s=timeout_s),
            inputs,
            concurrency,
        )

    def predict_file(
        self, model: str, body: bytes, media_type: str, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """The model's answer for a file, in plain values: label, class and probabilities by label, or value.

        Args:
            model: As for `predict`.
            body: The file's bytes.
            media_type: image/png, image/jpeg, audio/wav, text/plain, text/csv (with a header; the answer then
                has a list, `predictions`) or application/json ({"inputs": a sample or a list of them}).
            timeout_s: Instead of the client's own.

        Raises:
            ModelNotFound: as `predict`.
            InputError: the file is damaged, or is nothing that the model takes; the message says what is.
        """
        return self._run(calls.predict_file(model, body, media_type), timeout_s)

    @overload
    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] = ...,
        stream: Literal[False] = ...,
        timeout_s: float | None = ...,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        stop: str | Sequence[str] = ...,
        stream: Literal[True],
        timeout_s: float | None = ...,
    ) -> TextStream: ...

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        timeout_s: float | None = None,
    ) -> Generation | TextStream:
        """The text with which the model goes on from `prompt`; streamed, piece by piece as it is made.

        Args:
            model: As for `predict`; it must be one that generates.
            prompt: One character at least.
            max_tokens: The text ends after so many.
            temperature: 0 takes the likeliest token each time; up to 2.
            top_p: Draw among the likeliest tokens that together have this probability.
            seed: With one, equal calls have equal answers.
            stop: The text ends before the first of these.
            stream: Return a `TextStream` to iterate over, once the first piece is there.
            timeout_s: Until the answer; streamed, until the next piece.

        Raises:
            ModelNotFound, InputError: as `predict`.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        request = GenerationRequest(prompt, max_tokens, temperature, top_p, seed, stops)
        if not stream:
            return self._run(calls.generate(model, request), timeout_s)
        limit_s = timeout_s or self._settings.timeout_s
        call = calls.stream(model, request)
        return TextStream(
            self._retried(call, limit_s, lambda left_s: self._open(call, left_s)), self._settings
        )

    def models(self) -> list[Model]:
        """Every deployed model, by name."""
        return self._run(calls.models())

    def model(self, name: str) -> Model:
        """One deployed model. Raises: ModelNotFound."""
        return self._run(calls.model(name))

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the model, or where none is named every one, can answer now. Raises: ModelNotFound."""
        return self._run(calls.ready(model))

    def runs(self, name: str | None = None, *, limit: int = 20) -> list[Run]:
        """The newest training runs, the newest first; for a key of scope `admin`.

        Args:
            name: Only the run of this id, or those of the spec of this name; empty where there is none.
            limit: So many at most, up to 1000.
        """
        return self._run(calls.runs(name, limit))

    @property
    def jobs(self) -> JobClient:
        """The cluster's jobs, found as `JobClient.from_environment` says."""
        if self._jobs is None:
            self._jobs = JobClient.from_environment()
        return self._jobs

    def _look_up(self, model: str) -> calls.Known:
        inputs = self._run(calls.metadata(model))
        self._known[model] = calls.Known.of(inputs, self._run(calls.extensions()))
        return self._known[model]

    def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        limit_s = timeout_s or self._settings.timeout_s
        return self._retried(call, limit_s, lambda left_s: self._exchange(call, left_s))

    def _retried(self, call: Call[Any], limit_s: float, attempt: Any) -> Any:
        deadline_s = time.monotonic() + limit_s
        for number in range(self._settings.max_attempts):
            try:
                return attempt(min(calls.LONGEST_S, max(0.001, deadline_s - time.monotonic())))
            except EaglerayError as error:
                is_last = number == self._settings.max_attempts - 1
                wait_s = None if is_last else call.wait_s(error, number, deadline_s - time.monotonic())
                if wait_s is None:
                    raise
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _exchange(self, call: Call[T], left_s: float) -> T:
        answer = self._send(call, left_s, is_streamed=False)
        return call.result(answer.status_code, answer.headers, answer.content, self.url)

    def _open(self, call: Call[None], left_s: float) -> httpx.Response:
        answer = self._send(call, left_s, is_streamed=True)
        if answer.status_code >= 300:
            call.result(answer.status_code, answer.headers, answer.content, self.url)
        return answer

    def _send(self, call: Call[Any], left_s: float, *, is_streamed: bool) -> httpx.Response:
        try:
            request = self._http.build_request(
                call.method,
                calls.parsed(self.url + call.path),
                content=call.content,
                headers=call.headers,
                timeout=httpx.Timeout(left_s, connect=min(left_s, calls.CONNECT_S)),
            )
            answer = self._http.send(request, stream=is_streamed)
            if is_streamed and answer.status_code >= 300:
                answer.read()
            return answer
        except httpx.ConnectTimeout as error:
            raise self._settings.no_answer(error) from None
        except httpx.TimeoutException:
            raise TookTooLongError(f"{self.url}{call.path}: no answer within {left_s:.3g} s") from None
        except httpx.TransportError as error:
            raise self._settings.no_answer(error) from None


class TextStream(TextPieces):
    """Pieces of a text as they come; leaving the loop early, or `close`, stops the model.

    `text`, `finish_reason`, `prompt_tokens` and `completion_tokens` say what came, at any time.
    """

    def __init__(self, answer: httpx.Response, settings: Settings) -> None:
        super().__init__(settings)
        self._answer = answer
        self._pieces = self._read()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Stop reading; the model stops too."""
        self._pieces.close()
        self._answer.close()

    def _read(self) -> Any:
        try:
            for line in self._answer.iter_lines():
                if piece := self._take(line):
                    yield piece
            self._check_end()
        except httpx.TransportError as error:
            raise self._broken(error) from None
        finally:
            self._answer.close()


__all__ = ["Client", "NoAnswerError", "TextStream"]
