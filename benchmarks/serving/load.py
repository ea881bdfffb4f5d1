"""The load generator: compiled when it is first wanted, run for some seconds, its answer as values."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent / "loadgen"
HOST = "127.0.0.1"
_FLAGS = ("-O2", "-std=gnu11")


class LoadError(Exception):
    """The load generator cannot be built, or gave up; the message says why."""


@dataclass(frozen=True)
class Requests:
    """A class of requests."""

    request: Path
    """A file with a whole request, head and body."""
    connections: int
    rate: float = 0.0
    """Requests per second at random times, with latencies from when they were due; 0: a closed loop."""
    is_stream: bool = False
    seed: int = 0
    """Of the random times."""


@dataclass(frozen=True)
class Times:
    """How long something took, in microseconds."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What came of a class in the block's window."""

    seconds: float
    due: int
    done: int
    ok: int
    """Answers of status 2xx."""
    broken: int
    """Connections that ended instead of an answer."""
    reconnects: int
    unfinished: int
    """Requests that had no answer when the generator stopped waiting."""
    unsent: int
    """Requests of an open loop for which no connection was free until the end."""
    events: int
    bytes: int
    statuses: Mapping[str, int]
    latency_us: Times = field(default_factory=Times)
    """Of answers of status 2xx."""
    refused_us: Times = field(default_factory=Times)
    first_us: Times = field(default_factory=Times)
    """The first event of each answer."""

    @property
    def ok_per_s(self) -> float:
        """Good answers per second."""
        return self.ok / self.seconds

    @property
    def events_per_s(self) -> float:
        """Server-sent events per second."""
        return self.events / self.seconds

    @property
    def bad(self) -> str:
        """Everything but good answers, in words; empty where there is nothing."""
        others = [f"{count} x {status}" for status, count in self.statuses.items() if status[0] != "2"]
        lost = {"broken": self.broken, "unfinished": self.unfinished, "unsent": self.unsent}
        return ", ".join([*others, *(f"{count} {name}" for name, count in lost.items() if count)])


@dataclass(frozen=True)
class Block:
    """Some seconds of load."""

    seconds: float
    cpu: float
    """Of the load generator, in cores."""
    stolen: float
    """The share of the machine's time that its neighbours took."""
    classes: tuple[Seen, ...]

    @property
    def only(self) -> Seen:
        """What came of the one class."""
        [seen] = self.classes
        return seen


def run(
    port: int,
    requests: Sequence[Requests],
    seconds: float,
    *,
    warm_s: float = 0.5,
    drain_s: float = 3.0,
    folder: Path | None = None,
) -> Block:
    """Load on a server of this machine.

    Args:
        port: Where it listens.
        requests: All at once.
        seconds: What counts.
        warm_s: Before that.
        drain_s: After it, for answers under way.
        folder: Of the compiled generator; the benchmark's cache where not given.

    Raises:
        LoadError: as `program`; or it found no HTTP.
    """
    words = [str(program(folder)), HOST, str(port), f"{warm_s:g}", f"{seconds:g}", f"{drain_s:g}"]
    for one in requests:
        kind = "sse" if one.is_stream else "http"
        words += [str(one.request), str(one.connections), f"{one.rate:g}", kind, str(one.seed)]
    try:
        found = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=warm_s + seconds + drain_s + 60
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"the load generator did not end: {' '.join(words)}") from None
    if found.returncode != 0:
        raise LoadError(found.stderr.strip() or f"the load generator ended with exit code {found.returncode}")
    return read(found.stdout)


def read(text: str) -> Block:
    """The block that one line of the generator tells of."""
    values = json.loads(text)
    seconds = values["seconds"]
    classes = tuple(_seen(one, seconds) for one in values["classes"])
    return Block(seconds, values["cpu"], values["stolen"], classes)


def _seen(values: Mapping[str, Any], seconds: float) -> Seen:
    times = {name: Times(**value) for name, value in values.items() if name.endswith("_us")}
    return Seen(seconds=seconds, **{**values, **times})


def program(folder: Path | None = None) -> Path:
    """The compiled generator, from the cache or built now. Raises: LoadError where it cannot be built."""
    names = [name for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise LoadError("there is no C compiler; install one (apt install gcc)")
    if folder is None:
        import place

        folder = place.cache()
    sources = sorted(SOURCE.iterdir())
    said = "\0".join((compiler, *_FLAGS, *(path.read_text() for path in sources)))
    path = folder / f"loadgen-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}")
        words = [compiler, *_FLAGS, "-o", str(part), str(SOURCE / "loadgen.c"), "-lm"]
        built = subprocess.run(words, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise LoadError(f"{' '.join(words)} failed:\n{built.stderr.strip()}")
        part.replace(path)
    return path
