"""What a row, in a process of its own, tells the benchmark: one JSON value a line, through a pipe.

So a row that crashes takes nothing with it that was measured before.
"""

from __future__ import annotations

import json
import os
from typing import Any

PIPE = "EAGLERAY_BENCH_PIPE"
"""Names the file descriptor in the row's environment."""


class Teller:
    """The row's end."""

    def __init__(self, descriptor: int):
        self._pipe = os.fdopen(descriptor, "w")

    def note(self, text: str) -> None:
        """What is going on."""
        self._send(note=text)

    def repetition(self, **values: Any) -> None:
        """One repetition, whole."""
        self._send(repetition=values)

    def facts(self, **values: Any) -> None:
        """What holds for all repetitions."""
        self._send(facts=values)

    def failure(self, text: str) -> None:
        """Why the row ends before its end."""
        self._send(failure=text)

    def not_available(self, text: str) -> None:
        """Why nothing can be measured here."""
        self._send(not_available=text)

    def _send(self, **message: Any) -> None:
        self._pipe.write(json.dumps(message) + "\n")
        self._pipe.flush()


def take(result: dict[str, Any], line: str) -> str | None:
    """Put one line of a row into its result; returns a note, if it is one."""
    message = json.loads(line)
    if "repetition" in message:
        result["repetitions"].append(message["repetition"])
    result["facts"] |= message.get("facts", {})
    for name in ("failure", "not_available"):
        result[name] = message.get(name, result[name])
    return message.get("note")
