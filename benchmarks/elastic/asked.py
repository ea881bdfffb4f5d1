"""A small model that is served and asked while something happens to the cluster."""

from __future__ import annotations

import threading
from typing import Any

from kit.results import RowFailed

LABELS = {"eagleray.io/pool": "train"}
"""Of its node: one of the kind that runs have, so that the cluster starts no other."""


class Asked:
    """The model behind the ingress, from deploying it to its end."""

    def __init__(self, cluster: Any, **service: Any):
        """`service` are settings of its service (`eagleray.specs.service`)."""
        self._cluster, self._service = cluster, {"cpus_per_replica": 0.3, **service}
        self.num_answers = 0
        self.failed: list[str] = []
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Asked:
        import httpx

        from eagleray.cluster import local, processes, settings
        from eagleray.registry.models import MlflowModels
        from support import cards
        from support.served import NAME, deploy

        if not processes.wait_until(lambda: local.is_ingress_ready(self._cluster), timeout_s=120):
            raise RowFailed("the ingress does not answer")
        store = MlflowModels(settings.tracking_uri(), settings.storage_url())
        card = cards.card("image", name=NAME)
        version = store.publish(card, cards.weights(card, 7)).version
        self._client = httpx.Client(
            base_url=self._cluster.ingress_url,
            headers={"Authorization": f"Bearer {self._cluster.admin_key_path.read_text()}"},
            timeout=60,
            trust_env=False,
        )
        deploy(self._client, version=version, label_selector=LABELS, **self._service)
        self.ask_once(120)
        return self

    def __exit__(self, *_: object) -> None:
        from support.served import NAME

        self._is_over.set()
        if self._thread is not None:
            self._thread.join(60)
        self._client.post("/admin/undeploy", json={"name": NAME})
        self._client.close()

    def ask_once(self, limit_s: float) -> None:
        """Return with the first answer; a request that is refused meanwhile is sent again."""
        from eagleray.cluster import processes

        if not processes.wait_until(self._is_answered, timeout_s=limit_s):
            raise RowFailed(f"no answer within {limit_s:.0f} s; {self.failed[-2:]}")
        self.failed.clear()

    def ask_always(self) -> None:
        """From now on, about ten times a second, until the end."""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def await_answers(self, count: int) -> None:
        """Until so many more have come."""
        from eagleray.cluster import processes

        before = self.num_answers
        if not processes.wait_until(lambda: self.num_answers >= before + count, timeout_s=90):
            raise RowFailed(f"no {count} answers within 90 s; failed: {self.failed[-3:]}")

    def _ask(self) -> None:
        while not self._is_over.wait(0.1):
            self._is_answered()

    def _is_answered(self) -> bool:
        """Send one request; where it fails, `failed` says why."""
        import httpx

        from support.served import infer

        try:
            answer = infer(self._client)
        except httpx.HTTPError as error:
            self.failed.append(repr(error))
            return False
        if answer.status_code == 200:
            self.num_answers += 1
            return True
        self.failed.append(f"{answer.status_code} {answer.text[:200]}")
        return False
