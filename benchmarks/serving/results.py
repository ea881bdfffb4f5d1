"""What a row tells: its repetitions, its facts, and why it failed or could not be measured. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class NotAvailable(Exception):
    """What the row measures is not there; the message says what was asked and answered."""


class RowFailed(Exception):
    """The row could not be measured as it should have been."""


def empty() -> dict[str, Any]:
    """A row's result before it has told anything."""
    return {"repetitions": [], "facts": {}, "failure": None, "not_available": None}


class Teller:
    """Takes what a row tells, into its result."""

    def __init__(self, note: Callable[[str], None] = lambda _: None) -> None:
        """`note` hears what is going on."""
        self.result = empty()
        self.note = note

    def repetition(self, **values: Any) -> None:
        """Figures of one repetition."""
        self.result["repetitions"].append(values)

    def facts(self, **values: Any) -> None:
        """What holds of the row as a whole."""
        self.result["facts"].update(values)
