"""Registry and tracking, asked from the controller's event loop; MLflow is imported at the first question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from eagleray.specs import ModelCard

if TYPE_CHECKING:
    from eagleray.packaging.store import ModelStore, ModelVersion
    from eagleray.registry.runs import RunRecord, TrackedRuns

Result = TypeVar("Result")


class Catalog:
    """Models that can be served, and runs. What is opened is opened once, in this object's own thread."""

    def __init__(self, open_store: Callable[[], ModelStore], open_runs: Callable[[], TrackedRuns]) -> None:
        self._open_store, self._open_runs = open_store, open_runs
        self._store: ModelStore | None = None
        self._runs: TrackedRuns | None = None
        self._thread = ThreadPoolExecutor(1, "registry")  # MLflow takes 1.4 s to import: never in the loop

    async def find(self, ref: str, *, allow_code: bool) -> tuple[ModelVersion, ModelCard]:
        """The version that `ref` means, and its card, from its package, which is looked at but not loaded.

        Raises:
            InputError, ModelNotFound: `ref` is none, or names nothing.
            PackageError: its package is damaged, or may not be loaded.
        """

        def look(store: ModelStore) -> tuple[ModelVersion, ModelCard]:
            from eagleray.packaging import open_package

            found = store.resolve(ref)
            return found, open_package(found.url, allow_code=allow_code, digest=found.digest).card

        return await self._ask(look)

    async def names(self) -> list[str]:
        """The names of all models."""
        return await self._ask(lambda store: store.names())

    async def versions(self, name: str) -> list[ModelVersion]:
        """The versions of one model, oldest first. Raises: ModelNotFound."""
        return await self._ask(lambda store: store.versions(name))

    async def aliases(self, name: str) -> dict[str, int]:
        """The aliases of one model. Raises: ModelNotFound."""
        return aliases_of(await self.versions(name))

    async def promote(self, name: str, version: int, alias: str) -> None:
        """Point an alias of the registry to a version. Raises: InputError, ModelNotFound."""
        await self._ask(lambda store: store.promote(name, version, alias))

    async def runs(self, name: str | None, limit: int) -> list[RunRecord]:
        """The newest runs, of an id or a spec's name where given. Raises: ServiceError."""

        def look() -> list[RunRecord]:
            if self._runs is None:
                self._runs = self._open_runs()
            return self._runs.newest(limit, name)

        return await self._in_thread(look)

    async def _ask(self, question: Callable[[Any], Result]) -> Result:
        def ask() -> Result:
            if self._store is None:
                self._store = self._open_store()
            return question(self._store)

        return await self._in_thread(ask)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def aliases_of(versions: list[ModelVersion]) -> dict[str, int]:
    """Alias -> version number."""
    return {alias: version.version for version in versions for alias in version.aliases}
