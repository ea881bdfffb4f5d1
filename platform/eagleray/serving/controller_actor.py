"""The serving controller as a Ray actor: a shell that stays as it is, for Ray keeps its methods' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ControllerActor:
    """An asyncio actor that holds the controller."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:
        import logging

        from eagleray.serving.control_settings import ControllerSettings
        from eagleray.serving.controller import Controller

        logging.basicConfig(format="%(asctime)s %(message)s")  # into the worker's file, as all that it prints
        logging.getLogger("eagleray").setLevel(logging.INFO)
        self._controller = Controller(ControllerSettings.from_json(settings))
        self._controller.start()

    async def ping(self) -> dict[str, Any]:
        """As Controller."""
        return await self._controller.ping()

    async def end(self) -> None:
        """As Controller."""
        await self._controller.end()

    async def admin(self, method: str, arguments: Sequence[Any]) -> dict[str, Any]:
        """As Controller."""
        return await self._controller.admin(method, arguments)

    async def shares(
        self, gateway: str, held: Mapping[str, Any], demands: Mapping[str, float]
    ) -> dict[str, Any]:
        """As Accounts.renew."""
        return self._controller.accounts.renew(gateway, held, demands)

    async def leave(self, gateway: str) -> None:
        """As Controller."""
        self._controller.leave(gateway)

    async def watch(
        self, reader: str, known: int, drained: Sequence[str], wait_s: float
    ) -> dict[str, Any] | None:
        """As Controller."""
        return await self._controller.watch(reader, known, drained, wait_s)
