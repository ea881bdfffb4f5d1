"""`LedgerClient`: the cluster's ledger, from a process that is connected to the cluster."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from eagleray.capacity.client import Allotment, Statement
from eagleray.cluster.names import LEDGER, NAMESPACE
from eagleray.errors import EaglerayError

_ANSWER_S = 3.0
_REPORT_S = 10.0
_LOOK_EVERY_S = 0.1
_log = logging.getLogger(__name__)


class LedgerClient:
    """A `ClaimClient` of the actor. None is the answer where it is away: it is started again by itself.

    Safe in threads. Made without a look at the cluster; each call looks the actor up where it must.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._lock = threading.Lock()

    @classmethod
    def find(cls, timeout_s: float = 20.0) -> LedgerClient | None:
        """The ledger of the cluster that this process is connected to; None where it has none.

        Holders then do as they would without one. Where the cluster has just been started, this waits for its
        ledger, `timeout_s` at most, and says so where it has not come.
        """
        from eagleray.cluster.observation_ray260 import is_ledger_expected

        client, deadline_s = cls(), time.monotonic() + timeout_s
        while client._handle() is None:
            if not is_ledger_expected():
                return None
            if time.monotonic() > deadline_s:
                _log.warning("no ledger came within %g s: who asks for it goes on without a claim", timeout_s)
                return None
            time.sleep(_LOOK_EVERY_S)
        return client

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
        """Who holds what and what waits for what: `Arbiter.report`, plain values; None where it is away."""
        return self._ask(_REPORT_S, "report")

    def _ask(self, limit_s: float, method: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

        if (actor := self._handle()) is None:
            return None
        try:
            return ray.get(getattr(actor, method).remote(*arguments), timeout=limit_s)
        except RayTaskError as error:
            if isinstance(error.cause, EaglerayError):
                raise error.cause from None
            raise
        except ActorUnavailableError:  # it lives, and to look it up may take a minute while the GCS is away
            pass
        except RayActorError:
            self._forget(actor)
        except RayError:  # among them GetTimeoutError: it is being started again, or the GCS is away
            pass
        return None

    def _handle(self) -> Any:
        """The actor; None where there is none, or the GCS cannot be asked."""
        import ray
        from ray.exceptions import RayError

        if not ray.is_initialized():  # else Ray would start a cluster of its own
            return None
        if (actor := self._actor) is not None:
            return actor
        try:
            found = ray.get_actor(LEDGER, namespace=NAMESPACE)  # it may take a minute: not under the lock
        except (ValueError, RayError, OSError):
            return None
        with self._lock:
            self._actor = self._actor or found
            return self._actor

    def _forget(self, actor: Any) -> None:
        with self._lock:
            if self._actor is actor:
                self._actor = None
