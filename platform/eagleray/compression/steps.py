"""How many steps a compressor has done, for those whose steps are not all alike."""

from __future__ import annotations

from eagleray.compression.layout import Layout
from eagleray.compression.memory import COUNT, Memory
from eagleray.compression.wire import Step


class Steps:
    """Counts steps in the memory (slot "steps", the model's first parameter), so that a resumed run goes on.

    The same on all ranks. A state that is to be loaded must be there before the first step.
    """

    def __init__(self, layout: Layout, memory: Memory):
        self._memory = memory
        self._name = next(iter(layout.places), None)
        self._last: Step | None = None
        self._done = -1

    def before(self, step: Step) -> int:
        """How many steps were done before this one, whichever of its buckets asks."""
        if self._name is None:
            return 0
        if self._last is None or self._last.number != step.number:
            count, _ = self._memory.tensor(COUNT, self._name, "same", (1,))
            self._done = int(count) if self._last is None else self._done + 1
            self._last = step
            count.fill_(self._done + 1)
        return self._done
