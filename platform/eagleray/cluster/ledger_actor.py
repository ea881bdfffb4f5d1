"""The ledger as a Ray actor: a shell that stays as it is, for Ray keeps its methods' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagleray.capacity.client import Allotment, Statement


class LedgerActor:
    """An asyncio actor that holds the arbiter."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:
        import logging

        import ray

        from eagleray.cluster import profiles
        from eagleray.cluster.arbiter import Arbiter
        from eagleray.cluster.event_log import EventLog
        from eagleray.cluster.ledger import LedgerSettings, patient
        from eagleray.cluster.observation_ray260 import session
        from eagleray.cluster.ray_side_ray260 import RaySide

        logging.basicConfig(format="%(asctime)s %(message)s")  # into the worker's file, as all that it prints
        logging.getLogger("eagleray").setLevel(logging.INFO)
        wanted = LedgerSettings.from_json(settings)
        self._cluster = wanted.cluster
        log = EventLog(wanted.storage_url, wanted.cluster, session())
        is_restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        policy = patient(wanted.policy, profiles.of_environment())
        self._lease_s = policy.lease_s
        self._arbiter = Arbiter(RaySide(), log, is_restarted=is_restarted, policy=policy)
        self._arbiter.start()

    async def exchange(self, statement: Statement) -> Allotment | None:
        """As Arbiter."""
        return self._arbiter.exchange(statement)

    async def wait(self, claim: str, seen: int, timeout_s: float) -> Allotment | None:
        """As Arbiter."""
        return await self._arbiter.wait(claim, seen, timeout_s)

    async def close(self, claim: str) -> None:
        """As Arbiter."""
        self._arbiter.close(claim)

    async def report(self) -> dict[str, Any]:
        """As Arbiter, with the cluster's name and the version of the package that runs here."""
        from eagleray import __version__

        return {"cluster": self._cluster, "version": __version__, **self._arbiter.report()}

    async def ping(self) -> dict[str, Any]:
        """Which process this is, of which version, and how long a holder may be silent."""
        import os

        from eagleray import __version__

        known = {"pid": os.getpid(), "version": __version__, "cluster": self._cluster}
        return {**known, "lease_s": self._lease_s}

    async def end(self) -> None:
        """As Arbiter."""
        await self._arbiter.end()
