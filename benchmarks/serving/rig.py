"""What rows measure with: the platform, bare servers, and load on them in blocks."""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import bodies
import load
import numpy as np
import place  # first: it says where eagleray is
import running
import workloads
from kit.results import RowFailed
from load import Block, Requests, Seen
from ours import Ours

BLOCK_S = 5.0
WARM_S = 0.5
_ANSWER_S = 60.0
_START_S = 0.1
"""In which the load generator has started."""


@dataclass
class Rig:
    """All rows share one."""

    folder: Path
    ours: Ours = field(default_factory=Ours)
    block_s: float = BLOCK_S
    _bare: dict[str, running.Server] = field(default_factory=dict)
    _blocks: list[Block] = field(default_factory=list)

    def told(self) -> dict[str, float]:
        """What disturbed the blocks since this was asked before: the generator itself, and neighbours."""
        blocks, self._blocks = self._blocks, []
        return {
            "count": len(blocks),
            "generator_cores": max((one.cpu for one in blocks), default=0.0),
            "stolen": max((one.stolen for one in blocks), default=0.0),
        }

    def close(self) -> None:
        """End everything."""
        for server in self._bare.values():
            server.stop()
        self._bare.clear()
        self.ours.down()

    def bare(self, model: str) -> int:
        """The port of the same forward behind raw uvicorn; started when it is first wanted."""
        if model not in self._bare:
            port = running.free_port()
            words = [sys.executable, str(place.HERE / "bare.py"), str(port), model]
            server = running.Server(f"bare {model}", words, port, self.folder / f"bare-{model}.log")
            server.start(120.0)
            self._bare[model] = server
        return self._bare[model].port

    def requests(
        self,
        model: str,
        *,
        is_binary: bool = False,
        samples: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, tuple[int, Path]]:
        """Port and request of `bare` and `ours`, both ready, and of the same answer.

        Raises: RowFailed where one does not answer as it should.
        """
        self.ours.serve(model)
        make = bodies.infer_binary if is_binary else bodies.infer_json
        values = workloads.samples(model, samples)
        expected = _expected(model, values)
        found = {}
        for name, port in (("bare", self.bare(model)), ("ours", self.ours.port)):
            extra = None if name == "bare" else {**self.ours.headers, **(headers or {})}
            request = make(port, model, values, extra)
            check(name, port, request, bodies.Answer.values, expected)
            kind = "binary" if is_binary else "json"
            found[name] = port, bodies.written(self.folder, f"{name}-{model}-{kind}-{samples}", request)
        return found

    def texts(self, model: str, tokens: int, *, is_stream: bool) -> dict[str, tuple[int, Path]]:
        """As `requests`, for texts."""
        self.ours.serve(model)
        found = {}
        for name, port in (("bare", self.bare(model)), ("ours", self.ours.port)):
            headers = self.ours.headers if name == "ours" else None
            request = bodies.completion(
                port, model, workloads.PROMPT, tokens, is_stream=is_stream, headers=headers
            )
            answer = bodies.ask(port, request)
            if answer.status != 200 or (is_stream and len(answer.events()) < tokens // 8):
                raise RowFailed(f"{name} gave no text: {answer.status} {answer.body[:300]!r}")
            found[name] = port, bodies.written(self.folder, f"{name}-{model}-{tokens}-{is_stream}", request)
        return found

    def block(self, port: int, *requests: Requests, seconds: float | None = None) -> Block:
        """Some seconds of load. Raises: RowFailed where not one good answer came."""
        block = load.run(port, requests, seconds or self.block_s, warm_s=WARM_S)
        self._blocks.append(block)
        if not any(seen.ok or seen.events for seen in block.classes):
            raise RowFailed(
                f"no good answer in {block.seconds:g} s: {'; '.join(s.bad for s in block.classes)}"
            )
        return block

    def one(
        self,
        target: tuple[int, Path],
        connections: int,
        *,
        rate: float = 0.0,
        is_stream: bool = False,
        seconds: float | None = None,
    ) -> Seen:
        """A block of one class."""
        port, request = target
        requests = Requests(request, connections, rate, is_stream)
        return self.block(port, requests, seconds=seconds).only

    def with_cpu(self, pids: list[int], work: Callable[[], Seen]) -> tuple[Seen, float]:
        """What a block saw, and how many cores these processes kept busy in its window."""
        cores: list[float] = []

        def look() -> None:
            time.sleep(WARM_S + _START_S)
            began, before = time.monotonic(), running.cpu_s(pids)
            time.sleep(self.block_s - 2 * _START_S)
            cores.append((running.cpu_s(pids) - before) / (time.monotonic() - began))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        seen = work()
        thread.join()
        return seen, cores[0]


def check(
    name: str,
    port: int,
    request: bytes,
    read: Callable[[bodies.Answer], np.ndarray],
    expected: np.ndarray,
    limit_s: float = _ANSWER_S,
) -> None:
    """Return when the server gives the expected numbers; it may first be starting.

    Raises: RowFailed: it gives others, or none in time.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            answer = bodies.ask(port, request)
            said = f"{answer.status} {answer.body[:200]!r}"
            if answer.status == 200:
                if bodies.is_near(read(answer), expected):
                    return
                raise RowFailed(f"{name} gives other numbers than torch: {said}")
        except (OSError, http.client.HTTPException) as error:
            said = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            raise RowFailed(f"{name} does not answer as it should after {limit_s:.0f} s: {said}")
        time.sleep(0.3)


def _expected(model: str, values: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return workloads.module(model)(torch.from_numpy(values)).numpy().ravel()
