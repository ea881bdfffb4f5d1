"""`AsyncClient`: as `Client`, for programs with an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import httpx

from eagleray.client import admin as admin_calls
from eagleray.client import calls, many
from eagleray.client.calls import Call, Settings
from eagleray.client.claims import Claims
from eagleray.client.errors import TookTooLongError
from eagleray.client.results import (
    ApiKey,
    Gateways,
    Generation,
    Model,
    Prediction,
    RegisteredModel,
    RegisteredVersion,
    Run,
    Service,
)
from eagleray.client.texts import TextPieces
from eagleray.errors import EaglerayError, InputError
from eagleray.protocol.generation import GenerationRequest
from eagleray.protocol.key_terms import KeyTerms

if TYPE_CHECKING:
    from eagleray.specs import Spec

T = TypeVar("T")


class AsyncClient:
    """As `Client`, method by method; close it with `aclose`, or use it in an `async with` block.

    For one event loop. Jobs are `Client.jobs`: they take minutes, and a thread (`asyncio.to_thread`) does.
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
        self._http = httpx.AsyncClient(**self._settings.connection)
        self._known: dict[str, calls.Known] = {}
        self.admin = AsyncAdmin(self)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    @property
    def url(self) -> str:
        """The ingress's address."""
        return self._settings.url

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        model: str,
        inputs: Any,
        *,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Prediction:
        """As `Client.predict`."""
        known = self._known.get(model) or await self._look_up(model)
        try:
            return await self._run(calls.predict(model, inputs, known, outputs), timeout_s)
        except InputError:
            if (found := await self._look_up(model)) == known:
                raise
        return await self._run(calls.predict(model, inputs, found, outputs), timeout_s)

    async def predict_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        outputs: Sequence[str] = (),
        concurrency: int = many.CONCURRENCY,
        timeout_s: float | None = None,
    ) -> list[Prediction]:
        """As `Client.predict_many`."""
        _ = self._known.get(model) or await self._look_up(model)
        return await many.in_tasks(
            lambda entry: self.predict(model, entry, outputs=outputs, timeout_s=timeout_s),
            inputs,
            concurrency,
        )

    async def predict_file(
        self, model: str, body: bytes, media_type: str, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """As `Client.predict_file`."""
        return await self._run(calls.predict_file(model, body, media_type), timeout_s)

    @overload
    async def generate(
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
    async def generate(
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
    ) -> AsyncTextStream: ...

    async def generate(
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
    ) -> Generation | AsyncTextStream:
        """As `Client.generate`; streamed, it returns an `AsyncTextStream` for `async for`."""
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        request = GenerationRequest(prompt, max_tokens, temperature, top_p, seed, stops)
        if not stream:
            return await self._run(calls.generate(model, request), timeout_s)
        limit_s = timeout_s or self._settings.timeout_s
        call = calls.stream(model, request)
        answer = await self._retried(call, limit_s, lambda left_s: self._open(call, left_s))
        return AsyncTextStream(answer, self._settings)

    async def models(self) -> list[Model]:
        """Every deployed model, by name."""
        return await self._run(calls.models())

    async def model(self, name: str) -> Model:
        """One deployed model. Raises: ModelNotFound."""
        return await self._run(calls.model(name))

    async def runs(self, name: str | None = None, *, limit: int = 20) -> list[Run]:
        """As `Client.runs`."""
        return await self._run(calls.runs(name, limit))

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether the model, or where none is named every one, can answer now. Raises: ModelNotFound."""
        return await self._run(calls.ready(model))

    async def _look_up(self, model: str) -> calls.Known:
        inputs = await self._run(calls.metadata(model))
        self._known[model] = calls.Known.of(inputs, await self._run(calls.extensions()))
        return self._known[model]

    async def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        limit_s = timeout_s or self._settings.timeout_s
        return await self._retried(call, limit_s, lambda left_s: self._exchange(call, left_s))

    async def _retried(self, call: Call[Any], limit_s: float, attempt: Any) -> Any:
        deadline_s = time.monotonic() + limit_s
        for number in range(self._settings.max_attempts):
            try:
                return await attempt(min(calls.LONGEST_S, max(0.001, deadline_s - time.monotonic())))
            except EaglerayError as error:
                is_last = number == self._settings.max_attempts - 1
                wait_s = None if is_last else call.wait_s(error, number, deadline_s - time.monotonic())
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _exchange(self, call: Call[T], left_s: float) -> T:
        answer = await self._send(call, left_s, is_streamed=False)
        return call.result(answer.status_code, answer.headers, answer.content, self.url)

    async def _open(self, call: Call[None], left_s: float) -> httpx.Response:
        answer = await self._send(call, left_s, is_streamed=True)
        if answer.status_code >= 300:
            call.result(answer.status_code, answer.headers, answer.content, self.url)
        return answer

    async def _send(self, call: Call[Any], left_s: float, *, is_streamed: bool) -> httpx.Response:
        try:
            request = self._http.build_request(
                call.method,
                calls.parsed(self.url + call.path),
                content=call.content,
                headers=call.headers,
                timeout=httpx.Timeout(left_s, connect=min(left_s, calls.CONNECT_S)),
            )
            answer = await self._http.send(request, stream=is_streamed)
            if is_streamed and answer.status_code >= 300:
                await answer.aread()
            return answer
        except httpx.ConnectTimeout as error:
            raise self._settings.no_answer(error) from None
        except httpx.TimeoutException:
            raise TookTooLongError(f"{self.url}{call.path}: no answer within {left_s:.3g} s") from None
        except httpx.TransportError as error:
            raise self._settings.no_answer(error) from None


class AsyncAdmin:
    """As `Admin`, method by method."""

    def __init__(self, client: AsyncClient) -> None:
        self._run = client._run

    async def status(self) -> dict[str, Any]:
        """As `Admin.status`."""
        return await self._run(admin_calls.status())

    async def models(self) -> list[RegisteredModel]:
        """As `Admin.models`."""
        return await self._run(admin_calls.models())

    async def versions(self, name: str) -> list[RegisteredVersion]:
        """As `Admin.versions`."""
        return await self._run(admin_calls.versions(name))

    async def promote(self, name: str, version: int, alias: str) -> None:
        """As `Admin.promote`."""
        await self._run(admin_calls.promote(name, version, alias))

    async def services(self, name: str | None = None) -> list[Service]:
        """As `Admin.services`."""
        return await self._run(admin_calls.services(name))

    async def deploy(
        self,
        spec: str | Path | Spec | Mapping[str, Any],
        *,
        wait_s: float = 0.0,
        overrides: Sequence[str] = (),
    ) -> Service:
        """As `Admin.deploy`."""
        begun = await self._run(admin_calls.deploy(spec, overrides))
        deadline_s = time.monotonic() + wait_s
        while (found := admin_calls.pick(await self.services(begun.name), begun)).state != "ready":
            if admin_calls.is_time_up(found, time.monotonic() >= deadline_s, wait_s):
                break
            await asyncio.sleep(admin_calls.POLL_S)
        return found

    async def undeploy(self, name: str, version: int | None = None) -> list[int]:
        """As `Admin.undeploy`."""
        return await self._run(admin_calls.undeploy(name, version))

    async def claims(self) -> Claims:
        """As `Admin.claims`."""
        return await self._run(admin_calls.claims())

    async def gateways(self) -> Gateways:
        """As `Admin.gateways`."""
        return await self._run(admin_calls.gateways())

    async def restart_gateways(self) -> Gateways:
        """As `Admin.restart_gateways`."""
        return await self._run(admin_calls.restart_gateways())

    async def scale_gateways(self, number: int) -> Gateways:
        """As `Admin.scale_gateways`."""
        return await self._run(admin_calls.scale_gateways(number))

    async def keys(self) -> list[ApiKey]:
        """As `Admin.keys`."""
        return await self._run(admin_calls.keys())

    async def create_key(
        self, name: str, scopes: Sequence[str] = ("infer",), terms: KeyTerms | None = None
    ) -> ApiKey:
        """As `Admin.create_key`."""
        return await self._run(admin_calls.create_key(name, scopes, terms))

    async def rotate_key(self, key_id: str, *, overlap_s: float = admin_calls.OVERLAP_S) -> ApiKey:
        """As `Admin.rotate_key`."""
        return await self._run(admin_calls.rotate_key(key_id, overlap_s))

    async def revoke_key(self, key_id: str) -> None:
        """As `Admin.revoke_key`."""
        await self._run(admin_calls.revoke_key(key_id))


class AsyncTextStream(TextPieces):
    """As `TextStream`, for `async for` and `async with`; close it with `aclose`."""

    def __init__(self, answer: httpx.Response, settings: Settings) -> None:
        super().__init__(settings)
        self._answer = answer
        self._pieces = self._read()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncGenerator[str]:
        return self._pieces

    async def aclose(self) -> None:
        """Stop reading; the model stops too."""
        await self._pieces.aclose()
        await self._answer.aclose()

    async def _read(self) -> AsyncGenerator[str]:
        try:
            async for line in self._answer.aiter_lines():
                if piece := self._take(line):
                    yield piece
            self._check_end()
        except httpx.TransportError as error:
            raise self._broken(error) from None
        finally:
            await self._answer.aclose()
