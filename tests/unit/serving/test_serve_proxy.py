"""Ray Serve 2.60 takes our middleware into its proxy, and still has the headers that it is for."""

from __future__ import annotations

import re

import pytest

from eagleray.serving import proxy
from unit.processes import ROOT, python

# Ray's own, at import.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def path() -> str:
    """What `up` sets the variable to."""
    source = (ROOT / "platform/eagleray/cluster/environment.py").read_text()
    [found] = re.findall(rf'"{VARIABLE}": "([\w.]+)"', source)
    return found


def test_serves_proxy_takes_what_up_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private import http_util
    from ray.serve.config import HTTPOptions

    assert hasattr(http_util, VARIABLE)
    monkeypatch.setattr(http_util, VARIABLE, path())
    [found] = http_util.configure_http_middlewares(HTTPOptions()).middlewares
    assert found.cls is proxy.StripControlHeaders


def test_serves_headers_are_those_that_are_taken_away() -> None:
    from ray.serve._private import constants

    headers = {
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_SESSION_ID,
    }
    assert {header.replace("_", "-").encode() for header in headers} == proxy.CONTROL


def test_the_proxy_loads_no_more_than_it_needs() -> None:
    finished = python("-c", f"import sys, {path().rpartition('.')[0]}; print(*sys.modules)")
    assert finished.returncode == 0, finished.stderr
    assert {"numpy", "httpx", "torch"}.isdisjoint(finished.stdout.split())
