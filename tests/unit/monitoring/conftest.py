from __future__ import annotations

from collections.abc import Iterator

import pytest

from contracts.grafana_stand_in import GrafanaState, serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def state() -> GrafanaState:
    return GrafanaState(token="glsa_secret")


@pytest.fixture
def url(state: GrafanaState) -> Iterator[str]:
    with serving(state) as address:
        yield address
