"""A row in a process of its own: started, listened to, and ended with all that it started."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import messages
from kit.results import NotAvailable, RowFailed, empty
from messages import Teller
from rows import ROWS, Row

_MAIN = Path(__file__).with_name("__main__.py")
_GRACE_S = 15.0
_TAIL_LINES = 12
_running: set[subprocess.Popen[bytes]] = set()
_stopped: set[subprocess.Popen[bytes]] = set()


def run(
    row: Row, reps: int, env: Mapping[str, str], log: Path, note: Callable[[str], None]
) -> dict[str, Any]:
    """The row's result, also where it crashed or took too long: then `failure` says so.

    Args:
        row: which.
        reps: how many repetitions.
        env: of its process.
        log: takes what it and its workers print.
        note: hears what is going on.
    """
    result, began = empty(), time.monotonic()
    ours, theirs = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(_MAIN), "--row", row.name, "--reps", str(reps)],
            env={**env, messages.PIPE: str(theirs)},
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    os.close(theirs)
    _running.add(process)
    try:
        is_late = _listen(ours, began + row.limit_s, result, note)
    finally:
        os.close(ours)
        code = _end(process)
        _running.discard(process)
    if process in _stopped and code != 0:  # whatever it says of its end: it was asked to
        result["failure"] = "interrupted"
    elif is_late:
        result["failure"] = f"given up after {row.limit_s:.0f} s"
    elif code != 0 and result["failure"] is None and result["not_available"] is None:
        tail = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        result["failure"] = "\n".join([f"it ended with exit code {code}; its log ends with:", *tail])
    result["seconds"] = time.monotonic() - began
    return result


def stop_all() -> None:
    """Have those `run` that go on in other threads return soon: their rows are asked to end."""
    for process in list(_running):
        _stopped.add(process)
        process.send_signal(signal.SIGTERM)


def _listen(pipe: int, deadline: float, result: dict[str, Any], note: Callable[[str], None]) -> bool:
    """Take what the row tells until it has ended; whether it went on for too long."""
    rest = b""
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left_s)[0]:
            break
        data = os.read(pipe, 1 << 16)
        if not data:
            return False
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            text = messages.take(result, line.decode())
            if text is not None:
                note(text)
    return True


def _end(process: subprocess.Popen[bytes]) -> int:
    """End the row's process and those that it started, but for what belongs to the cluster; its exit code."""
    try:
        code = process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code


def main(name: str, reps: int) -> int:
    """The row's own process. Its exit is hard: a run that goes on in a thread has nothing more to say."""
    teller = Teller(int(os.environ.pop(messages.PIPE)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    row, code = ROWS[name], 0
    module, _, function = row.function.partition(":")
    try:
        getattr(importlib.import_module(module), function)(teller, reps, **row.arguments)
    except NotAvailable as error:
        teller.not_available(str(error))
    except RowFailed as error:
        teller.failure(str(error))
        code = 1
    except BaseException as error:
        traceback.print_exc()
        teller.failure(f"{type(error).__name__}: {error}")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
