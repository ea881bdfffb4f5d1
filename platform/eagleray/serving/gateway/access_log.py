"""`AccessLog`: a line of JSON for each answered request, in files that do not grow for ever."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import orjson

from eagleray.serving.gateway import numbers

log = logging.getLogger(__name__)

FOLDER = "access"
_NUM_FILES = 4
_FLUSH_S = 0.5
_MOST_PATH = 512
_MOST_WAITING = 50_000
"""Lines for a disk that does not take them; more are dropped, and counted."""


class AccessLog:
    """Lines of one gateway: `access-0.jsonl` and, older, `access-0.1.jsonl` to `access-0.3.jsonl`.

    Written by a thread of its own. Two gateways of a folder take different numbers; one that follows another
    goes on with its files.

    Args:
        folder: Made where it is not there, for the owner alone.
        max_bytes: Of the files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock, self._number = numbers.take(folder, "access")
        self._folder, self._file_bytes = folder, max(1, max_bytes // _NUM_FILES)
        self._waiting: deque[bytes] = deque()
        self._num_dropped = 0
        self._is_told = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The file with the newest lines."""
        return self._folder / f"access-{self._number}.jsonl"

    def write(self, line: bytes) -> None:
        """Have the line written soon, which has its end; for one thread."""
        if len(self._waiting) >= _MOST_WAITING:
            self._num_dropped += 1
            return
        self._waiting.append(line)

    def close(self) -> None:
        """Write what waits, and let go of the files."""
        self._is_over.set()
        self._thread.join(5.0)
        os.close(self._lock)

    def _run(self) -> None:
        while not self._is_over.wait(_FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            while lines:
                lines = lines[self._append(lines) :]
        except OSError as error:
            if not self._is_told:
                log.warning("the access log %s cannot be written: %s", self.path, error.strerror)
            self._is_told = True
            return
        self._is_told = False
        if self._num_dropped:
            log.warning("%d lines of the access log were dropped: the disk is too slow", self._num_dropped)
            self._num_dropped = 0

    def _append(self, lines: list[bytes]) -> int:
        """Write as many as the file has room for, one at least; how many."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            left = self._file_bytes - file.tell()
            number = 0
            while number < len(lines) and (left := left - len(lines[number])) >= 0:
                number += 1
            if number == 0 and file.tell() == 0:
                number = 1  # a line that no file has room for has one of its own
            file.write(b"".join(lines[:number]))
        if number < len(lines):
            self._rotate()
        return number

    def _rotate(self) -> None:
        older = [self._folder / f"access-{self._number}.{age}.jsonl" for age in range(1, _NUM_FILES)]
        for newer, place in reversed(list(zip([self.path, *older], older, strict=False))):
            if newer.exists():
                newer.replace(place)


def refusal(status: int, client: str, route: str) -> bytes:
    """The line of what was no request as the gateway takes it."""
    return orjson.dumps(
        {"time": _now().decode(), "client": client, "route": route, "status": int(status)},
        option=orjson.OPT_APPEND_NEWLINE,
    )


def exchange(
    *,
    request_id: str,
    trace_id: str,
    client: str,
    method: str,
    path: str,
    route: str,
    model: str,
    version: int | None,
    status: int,
    seconds: float,
    received: int,
    sent: int,
    spans_s: Mapping[str, float],
) -> bytes:
    """The line of an answered request; what many have in common is put into JSON once."""
    form = _form(method, path[:_MOST_PATH], route, model, version, tuple(spans_s))
    return form % (
        _now(),
        request_id.encode(),  # its own pattern, or hexadecimal, as all traces are
        trace_id.encode(),
        orjson.dumps(client),
        status,
        seconds,
        received,
        sent,
        *[1e3 * span_s for span_s in spans_s.values()],
    )


@lru_cache(maxsize=256)
def _form(  # noqa: PLR0917
    method: str, path: str, route: str, model: str, version: int | None, parts: tuple[str, ...]
) -> bytes:
    fixed = {"method": method, "path": path, "route": route, "model": model, "version": version}
    known = orjson.dumps(fixed)[1:-1].replace(b"%", b"%%")
    ms = b",".join(b'"%b":%%.3f' % part.encode() for part in parts)
    return (
        b'{"time":"%b","request_id":"%b","trace_id":"%b","client":%b,'
        + known
        + b',"status":%d,"seconds":%.6f,"received_bytes":%d,"sent_bytes":%d,"ms":{'
        + ms
        + b"}}\n"
    )


def _now() -> bytes:
    now_s = time.time()
    return b"%b.%03d+00:00" % (_second(int(now_s)), int(1e3 * (now_s % 1)))


@lru_cache(maxsize=4)
def _second(now_s: int) -> bytes:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
