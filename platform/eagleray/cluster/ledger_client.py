"""`LedgerClient`: the cluster's ledger, from a process that is connected to the cluster."""

from __future__ import annotations

import threading
from typing import Any

from eagleray.capacity.client import Allotment, Statement
from eagleray.cluster.names import LEDGER, NAMESPACE
from eagleray.errors import EaglerayError

_ANSWER_S = 3.0
_REPORT_S = 10.0


class LedgerClient:
    """A `ClaimClient` of the actor. None is the answer where it is away: it is started again by itself.

    Safe in threads. Made without a look at the cluster; each call looks the actor up where it must.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._lock = threading.Lock()

    @classmethod
    def find(cls) -> LedgerClient | None:
        """The ledger of the cluster that this process is connected to; None where it has none.

        Holders then do as they would without one.
        """
        client = cls()
        return client if client._handle() is not None else None

    def exchange(self, statement: Statement) -> Allotment | None:
        """As `ClaimClient.exchange`. Raises: InputError or CapacityError as the ledger raised it."""
        return self._ask(_ANSWER_S, "exchange", statement)

    def wait(self, claim: str, seen: int, timeout_s: float) -> Allotment | None:
        """As `ClaimClient.wait`."""
        return self._ask(timeout_s + _ANSWER_S, "wait", claim, seen, timeout_s)

    def close(self, claim: str) -> None:
        """As `ClaimClient.close`; where the ledger is away, the claim ends with its lease."""
        self._ask(_ANSWER_S, "close", claim)

    def report(self) -> dict[str, Any] | None:
        """Who holds what and what waits for what, as plain values: `Ledger.report`; None where it is away."""
        return self._ask(_REPORT_S, "report")

    def _ask(self, limit_s: float, method: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        if (actor := self._handle()) is None:
            return None
        try:
            return ray.get(getattr(actor, method).remote(*arguments), timeout=limit_s)
        except RayTaskError as error:
            if isinstance(error.cause, EaglerayError):
                raise error.cause from None
            raise
        except RayActorError:
            self._forget(actor)
        except RayError:  # among them GetTimeoutError: it is being started again, or the GCS is away
            pass
        return None

    def _handle(self) -> Any:
        import ray

        with self._lock:
            if self._actor is None:
                try:
                    self._actor = ray.get_actor(LEDGER, namespace=NAMESPACE)
                except ValueError:
                    return None
            return self._actor

    def _forget(self, actor: Any) -> None:
        with self._lock:
            if self._actor is actor:
                self._actor = None
