"""What the larger benchmarks say while they run."""

from __future__ import annotations

import sys

from rich.console import Console


class Progress:
    """One moving line on a terminal; elsewhere only what is worth a line of its own."""

    def __init__(self, *, is_verbose: bool = False) -> None:
        """Say notes as lines, too, where `is_verbose`."""
        self.console, self._is_verbose = Console(), is_verbose
        self._status = self.console.status("starting") if self.console.is_terminal else None
        if self._status is not None:
            self._status.start()

    def note(self, text: str) -> None:
        """What is going on; gone with the next."""
        if self._is_verbose:
            self.line(f"  {text}")
        elif self._status is not None:
            self._status.update(text)

    def line(self, text: str) -> None:
        """What stays."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        sys.stdout.flush()

    def close(self) -> None:
        """End the moving line."""
        if self._status is not None:
            self._status.stop()
