"""Tells Serve's controller (Ray 2.60) what waits on this gateway and what comes to it, as its own handles do.

By the report that a handle makes of its queue: what a gateway has waiting counts as Serve's own queue does,
for any policy, also where no replica runs; and Serve forgets it with the gateway, or ten seconds after the
last report. Other figures travel in the same one, and are read where the policy runs
(`serve_scaling_ray260`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from eagleray.serving.gateway.demand import EVERY_S, Demand, Statement
from eagleray.serving.model_app import DEPLOYMENT
from eagleray.serving.signals import ARRIVED, QUEUED_TEXTS

_PATIENCE_S = 5.0
_AT_ONCE_S = 0.05
"""What begins to wait is told at once, but no more often than this."""
_log = logging.getLogger(__name__)


class Teller:
    """For one event loop."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self._name = f"gateway-{secrets.token_hex(4)}"
        self._controller: Any = None
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Tell from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Tell nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            if found := self._demand.due():
                await self._tell(found)
                await asyncio.sleep(_AT_ONCE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._demand.is_urgent.wait()

    async def _tell(self, statements: Sequence[Statement]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._send([report(self._name, statement) for statement in statements])
            self._trouble = ""
        except Exception as error:  # Serve's controller is away: what waits then is said again
            self._controller = None
            if (found := f"{type(error).__name__}: {error}") != self._trouble:
                self._trouble = found
                _log.warning("Serve is not told what waits here: %s", found)

    async def _send(self, reports: Sequence[Any]) -> None:
        if self._controller is None:
            import ray
            from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

            self._controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        tell = self._controller.record_autoscaling_metrics_from_handle
        await asyncio.gather(*(tell.remote(found) for found in reports))


def report(gateway: str, statement: Statement) -> Any:
    """A statement as Serve's controller takes it: a HandleMetricReport."""
    from ray.serve._private.common import (
        DeploymentHandleSource,
        DeploymentID,
        HandleMetricReport,
        TimeStampedValue,
    )

    def point(time_s: float, value: float) -> Any:
        return TimeStampedValue(time_s, float(value))

    time_s = statement.time_s
    return HandleMetricReport(
        deployment_id=DeploymentID(DEPLOYMENT, statement.app),
        handle_id=gateway,
        actor_id=_actor_id(),
        handle_source=DeploymentHandleSource.REPLICA,
        queued_requests=[point(time_s, statement.queued)],
        metrics={
            ARRIVED: {gateway: [point(*count) for count in statement.arrived]},
            QUEUED_TEXTS: {gateway: [point(time_s, statement.texts)]},
        },
        timestamp=time_s,
    )


def _actor_id() -> str:
    """Of this process, by which Serve knows when it has ended."""
    import ray

    return ray.get_runtime_context().get_actor_id() or "" if ray.is_initialized() else ""
