"""What a row tells: its repetitions, its facts, and why it failed or could not be measured. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class NotAvailable(Exception):
    """What the row measures is not here: a part of the platform, or a machine that can do more.

    The message says what was asked and answered.
    """


class RowFailed(Exception):
    """The row could not be measured as it should have been; the message says what was there instead."""


def empty() -> dict[str, Any]:
    """A row's result before it has told anything."""
    return {"repetitions": [], "facts": {}, "failure": None, "not_available": None}


def values_of(row: Mapping[str, Any] | None, key: str) -> list[float]:
    """The key's values in a row's repetitions; where one has it not, that one is left out."""
    return [float(one[key]) for one in (row or {}).get("repetitions", ()) if one.get(key) is not None]


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
