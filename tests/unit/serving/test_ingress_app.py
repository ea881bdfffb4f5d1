"""A gateway that follows the controller, with a controller that only pretends and Serve's place empty."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagleray.errors import ServiceError
from eagleray.serving import ingress_app
from eagleray.serving.control_settings import ControllerSettings
from eagleray.serving.controller_client import Reader
from eagleray.serving.gateway.process import Gateway
from eagleray.serving.ingress_app import Ingress, IngressReplica
from eagleray.serving.routes import Routes
from eagleray.serving.state import IngressState, Limits
from support.serving import routes

# Ray's own, at import.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Controller:
    """Has news when `news` is set; is away while `error` is."""

    def __init__(self, directory: Path) -> None:
        self.settings = ControllerSettings(
            "pretend", str(directory), "", "127.0.0.1", 0, "", "", limits=Limits(timeout_s=5.0)
        )
        self.revision, self.routes, self.error = 1, Routes(), None
        self.changed = asyncio.Event()
        self.left: list[tuple[str, bool]] = []
        """Who said goodbye, and whether it still listened then."""

    async def watch(self, reader: Reader, wait_s: float) -> dict[str, Any] | None:
        if self.error:
            raise self.error
        if reader.revision == self.revision:
            try:
                async with asyncio.timeout(min(wait_s, 0.05)):
                    await self.changed.wait()
            except TimeoutError:
                return None
        self.changed.clear()
        state = IngressState(routes=self.routes).to_json()
        return {
            "revision": self.revision, "state": state, "draining": [], "starts": {}, "links": {},
            "ailing": {"m--gpt--v1": {"tries": 1, "reason": "no room", "is_final": False}},
            "settings": self.settings.to_json(),
        }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a scenario with an ingress that was opened."""

    def run(scenario: Callable[[Controller, Ingress, httpx.AsyncClient], Awaitable[None]]) -> None:
        async def main() -> None:
            controller, ingress = Controller(tmp_path), Ingress("ab12")

            async def watch(reader: Reader, wait_s: float) -> Any:
                return await controller.watch(reader, wait_s)

            async def leave(reader: Reader) -> None:
                assert ingress._gateway is not None
                controller.left.append((reader.name, ingress._gateway.is_listening))

            monkeypatch.setattr(Reader, "watch", watch)
            monkeypatch.setattr(Reader, "leave", leave)
            await ingress.open()
            assert ingress._gateway is not None
            url = f"http://127.0.0.1:{ingress._gateway.port}"
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
                await scenario(controller, ingress, client)
            await ingress.close()
            assert controller.left == [("ab12", False)], "also where it is the only one"

        asyncio.run(main())

    monkeypatch.setitem(Gateway.close.__kwdefaults__, "notice_s", 0.0)
    monkeypatch.setattr(ingress_app, "_RETRY_S", 0.01)
    return run


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.005)


def test_it_listens_where_the_controller_says_and_knows_what_it_knows(run) -> None:
    async def scenario(controller: Controller, ingress: Ingress, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v2/models/iris", headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (404, ["mine"])
        assert ingress.trouble == ""
        controller.routes, controller.revision = routes(), 2
        controller.changed.set()

        async def knows() -> bool:
            return (await client.get("/v2/models/iris")).status_code == 200

        await until(knows)
        assert ingress._reader._under_way == {}

    run(scenario)


def test_a_controller_that_is_away_is_waited_for_and_requests_are_answered(run, caplog) -> None:
    from ray.exceptions import ActorUnavailableError

    async def scenario(controller: Controller, ingress: Ingress, client: httpx.AsyncClient) -> None:
        controller.error = ActorUnavailableError("it restarts", b"0" * 16)
        controller.changed.set()

        async def is_told() -> bool:
            return "the controller does not answer" in caplog.text

        await until(is_told)
        assert (await client.get("/v2/health/live")).status_code == 200
        assert ingress.trouble == ""
        controller.error = None

    run(scenario)


def test_one_that_follows_no_more_says_so(run) -> None:
    async def scenario(controller: Controller, ingress: Ingress, client: httpx.AsyncClient) -> None:
        controller.error = RuntimeError("unforeseen")
        controller.changed.set()

        async def is_over() -> bool:
            return bool(ingress.trouble)

        await until(is_over)
        assert ingress.trouble == "the ingress no longer follows the controller: unforeseen"

    run(scenario)


def test_serve_is_told_of_a_gateway_that_does_not_serve_any_more() -> None:
    from types import SimpleNamespace

    def said(*, is_alive: bool = True, silent_s: float = 0.0, trouble: str = "") -> str:
        replica = SimpleNamespace(
            _thread=SimpleNamespace(is_alive=is_alive, silent_s=silent_s),
            _ingress=SimpleNamespace(trouble=trouble),
        )
        try:
            asyncio.run(IngressReplica.check_health(replica))  # type: ignore[arg-type]
        except ServiceError as error:
            return str(error)
        return ""

    assert said() == ""
    assert said(is_alive=False) == "the gateway's thread has ended"
    assert said(silent_s=31) == "the gateway's loop has not turned for 31 s"
    assert said(trouble="the gateway no longer listens") == "the gateway no longer listens"
