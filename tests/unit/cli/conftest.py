"""Verbs against an ingress without Ray, and against the stand-in for Ray's job API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from eagleray import cli
from eagleray.client import Package, calls, jobs, submission
from support.serving import Pretend, pretend, serving
from unit.client import stand_in

Run = Callable[..., "Said"]


class Said:
    """What a command came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No cluster of this machine, and none in the environment."""
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(jobs, "_POLL_S", 0.01)
    monkeypatch.setattr(calls, "_FIRST_WAIT_S", 0.001)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("EAGLERAY_URL", "EAGLERAY_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command as the shell would; returns what it said."""

    def run(*arguments: str) -> Said:
        code = cli.run(list(arguments))
        out, err = capfdbinary.readouterr()
        return Said(code, out.decode(), err.decode())

    return run


@dataclass
class Door:
    """One server for all tests, in front of each one's own ingress: to start one takes 0.1 s."""

    app: Any

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def door() -> Iterator[tuple[Door, str]]:
    """The server and its address."""
    behind = pretend()
    door = Door(behind.app)
    with serving(replace(behind, app=door)) as served:
        yield door, served.url


@pytest.fixture
def ingress(door: tuple[Door, str], monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """An ingress that the environment names, with an admin key."""
    found = replace(pretend(), url=door[1])
    door[0].app = found.app
    monkeypatch.setenv("EAGLERAY_URL", found.url)
    monkeypatch.setenv("EAGLERAY_KEY", found.admin_key)
    return found


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in.Ray]:
    """A cluster's job API that the environment names."""
    monkeypatch.setattr(submission, "eagleray_package", lambda: Package(b"a zip file"))
    with stand_in.running() as ray:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray.address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", stand_in.TOKEN)
        yield ray
