"""Texts of one replica: the iterations of its engine, in the model's thread, with passes between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from eagleray.errors import EaglerayError
from eagleray.inference.waiting import QueueClosed, QueueFull
from eagleray.protocol.generation import GenerationChunk, GenerationRequest
from eagleray.serving.replica.batcher import Executor

if TYPE_CHECKING:
    from eagleray.inference.continuous import ContinuousEngine, Handle

__all__ = ["News", "QueueClosed", "QueueFull", "Texts"]

_log = logging.getLogger(__name__)

News = GenerationChunk | EaglerayError


class Texts:
    """Takes requests for text from any thread. Predictions have their turn between two iterations."""

    def __init__(self, engine: ContinuousEngine, executor: Executor) -> None:
        """`executor`: the model's one thread, which is where all callbacks run."""
        self._engine, self._executor = engine, executor
        self._lock = threading.Lock()
        self._is_stepping = False
        self.failure: Exception | None = None
        """Of the engine itself, which has ended all texts and takes no more."""

    @property
    def num_under_way(self) -> int:
        """Texts that run or wait."""
        return self._engine.num_running + self._engine.num_waiting

    def submit(
        self,
        request: GenerationRequest,
        on_piece: Callable[[GenerationChunk], None],
        on_end: Callable[[News], None],
        *,
        key: str = "",
    ) -> Handle:
        """As `ContinuousEngine.submit`, and have it made. Raises: QueueFull, QueueClosed."""
        handle = self._engine.submit(request, on_piece, on_end, key=key)
        with self._lock:
            if self._is_stepping:
                return handle
            self._is_stepping = True
        self._executor.submit(self._step)
        return handle

    def close(self) -> None:
        """End all texts with QueueClosed, and take no more; from any thread, done by the model's."""
        self._executor.submit(self._engine.close)

    def run(self, request: GenerationRequest) -> None:
        """Make one text to its end, here: to be called in the model's thread, before others come."""
        self._engine.submit(request, _no_news, _no_news)
        while self._engine.step():
            pass

    def _step(self) -> None:
        try:
            has_more = self._engine.step()
        except Exception as error:  # a model's own failure ends its texts, and is not raised
            _log.exception("the engine of texts failed")
            self.failure, has_more = error, False
            self._engine.close()
        with self._lock:
            # One may have come after the engine looked.
            self._is_stepping = has_more or self.num_under_way > 0
            has_more = self._is_stepping
        if has_more:
            self._executor.submit(self._step)


def _no_news(_news: News) -> None:
    """Nobody waits for it."""
