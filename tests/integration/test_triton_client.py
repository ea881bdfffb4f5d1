"""NVIDIA's own HTTP client, unmodified, against a fast lane with real links: no cluster is needed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagleray.serving.gateway.lane_exchange import LaneExchange
from eagleray.serving.ingress.http import Response
from support.serving import Pretend, outputs_for, pretend, serving, target

REQUIREMENT = "tritonclient[http]==2.73.0"
"""Its pins are its own: in an environment of its own it disagrees with none of ours."""
INFER = "/v2/models/digits/infer"
IMAGES = (np.arange(200 * 64, dtype=np.float32) % 17).reshape(200, 1, 8, 8)


@pytest.fixture(scope="module")
def triton_python() -> Path:
    """The Python of an environment with the client, made once and kept in the user's cache."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagleray-tests"
    name = REQUIREMENT.replace("[http]==", "-")
    home = caches / f"{name}-{sys.implementation.cache_tag}"
    if not (home / "bin/python").exists():
        caches.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=caches))
        try:
            venv.create(made, with_pip=False)
            pip = [sys.executable, "-m", "pip", "--python", str(made / "bin/python"), "install", "--quiet"]
            subprocess.run([*pip, REQUIREMENT], check=True, timeout=300)
            # Whole or not at all, unless another session was first; its scripts would not move, nor are used.
            with contextlib.suppress(OSError):
                made.rename(home)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return home / "bin/python"


class Noting:
    """Which way each inference took, and with which coding and as what it came and was answered.

    Stands for the app, which packed bodies are handed to; all others take the fast lane.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.seen: list[tuple[str, dict[str, str], dict[str, str]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start" and scope["path"] == INFER:
                self.seen.append(("app", _plain(scope["headers"]), _plain(message["headers"])))
            await send(message)

        await self._app(scope, receive, noted)

    def note_lane(self, patch: pytest.MonkeyPatch) -> None:
        """Note what the lane answers, too."""
        reply = LaneExchange._reply

        def noted(call: LaneExchange, response: Response) -> None:
            if call._scope["path"] == INFER:
                self.seen.append(("lane", dict(call._headers), dict(response.headers)))
            reply(call, response)

        patch.setattr(LaneExchange, "_reply", noted)


def _plain(headers: Any) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in headers}


@pytest.fixture(scope="module")
def server() -> Iterator[Pretend]:
    """With the routes, links to pretending replicas and the fast lane."""
    ingress = pretend(over_links=True)
    assert ingress.links is not None
    ingress.set(is_key_needed_for_infer=True)
    noting: Any = Noting(ingress.app)
    try:
        with pytest.MonkeyPatch.context() as patch, serving(replace(ingress, app=noting)) as server:
            noting.note_lane(patch)
            yield server
    finally:
        ingress.links.close()


@pytest.fixture(scope="module")
def found(server: Pretend, triton_python: Path) -> dict[str, Any]:
    """What tests/integration/triton_client.py prints."""
    program = Path(__file__).with_name("triton_client.py")
    finished = subprocess.run(
        [str(triton_python), "-I", str(program), server.url, server.infer_key],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_health_and_metadata(found: dict[str, Any]) -> None:
    told = found["metadata"]
    assert (told["live"], told["ready"], told["model ready"]) == (True, True, True)
    assert told["server"]["extensions"] == ["binary_tensor_data"]
    assert told["model"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]


def test_every_form_in_every_packing_has_one_answer(found: dict[str, Any], server: Pretend) -> None:
    expected = outputs_for(target("digits").card, {"image": IMAGES})
    assert len(found["inferences"]) == 2 * 4 * 3 * 3
    noted: Noting = server.app  # type: ignore[assignment]
    for asked, (way, request, answer) in zip(found["inferences"], noted.seen, strict=False):
        outputs = asked["outputs"]
        assert outputs["label"] == expected["label"].tolist(), asked
        assert outputs["class"] == expected["class"].tolist()
        probabilities = np.array(outputs["probabilities"], np.float32)
        assert np.array_equal(probabilities, expected["probabilities"].ravel())
        assert (asked["id"], asked["version"]) == ("42", "2")
        assert way == ("lane" if asked["packing"] is None else "app")
        assert request.get("content-encoding") == asked["packing"]
        assert ("inference-header-content-length" in request) == asked["is_binary"]
        assert answer.get("content-encoding") == asked["back"]
        assert ("inference-header-content-length" in answer) == (asked["form"] != "JSON")


def test_all_goes_over_links(found: dict[str, Any], server: Pretend) -> None:
    assert server.links is not None
    [transport] = server.links._by_loop.values()
    ways = transport.ways()
    assert ways["digits", "2", "link"] == len(found["inferences"]) + len(found["many"])
    assert (ways["digits", "3", "link"], ways["reviews", "1", "link"]) == (1, len(found["texts"]))
    assert not any(number for (*_, way), number in ways.items() if way == "serve")


def test_texts(found: dict[str, Any], server: Pretend) -> None:
    assert found["texts"] == [{"label": ["good", "good", "bad"]}] * 2
    given = [inputs["text"].tolist() for _, inputs in server.transport.asked if "text" in inputs]
    assert given == [["schön", "odd", ""]] * 2


def test_many_at_once_and_asyncio(found: dict[str, Any]) -> None:
    expected = outputs_for(target("digits").card, {"image": IMAGES})["label"].tolist()
    assert found["many"] == [[label] for label in expected[:20]]
    assert found["asyncio"]["version"] == "3"
    assert found["asyncio"]["outputs"]["label"] == expected


@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ("no key", "401", "this needs an API key"),
        ("no model", "404", "no model 'nothing' is deployed"),
        ("wrong", "400", "input 'image': shape [1, 8, 8], expected [-1, 1, 8, 8]"),
    ],
)
def test_refusals_are_told_in_words(found: dict[str, Any], what: str, status: str, message: str) -> None:
    assert found[what][0] == status
    assert message in found[what][1]
