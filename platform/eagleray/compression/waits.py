"""`Waits`: one thread waits for gloo, and another may tell that nothing will wake it any more."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Work(Protocol):
    """As torch's."""

    def wait(self) -> object:
        """Return when it is over. Raises: RuntimeError: it failed."""
        ...


class Waits:
    """What one thread waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_s: float | None = None
        self.is_given_up = False
        """By another thread: the one that waits is to touch nothing any more."""

    def on(self, work: Work) -> None:
        """Wait. Raises: RuntimeError: it failed, or it was given up."""
        with self._lock:
            self._since_s = time.monotonic()
        try:
            work.wait()
        finally:
            with self._lock:
                self._since_s = None
        if self.is_given_up:
            raise RuntimeError("it was given up")

    def give_up(self, after_s: float) -> bool:
        """Give it up if it has waited for so long; whether it has. From any thread."""
        with self._lock:
            if self._since_s is None or time.monotonic() - self._since_s < after_s:
                return False
            self.is_given_up = True
            return True
