"""Checkpoints that do not hold up the run: the state is copied to host memory, a thread writes it from there.

One write at a time, from one set of buffers that stay: a commit waits for the one before, so what a run may
have to redo is never more than two intervals. Storage trouble does not end the run before its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eagleray.errors import CheckpointError, PeerLost, TakenOver
from eagleray.packaging import Checkpoint, CheckpointStore, Image
from eagleray.packaging.journal import Journal, Segment
from eagleray.training.telemetry import Sink

if TYPE_CHECKING:
    from torch import Tensor


LOOK_EVERY_S = 0.05
"""Who waits for a write looks so often whether there is still a use in it."""


@dataclass(frozen=True)
class _Written:
    """How a write ended."""

    checkpoint: Checkpoint | None = None
    trouble: CheckpointError | None = None
    """Of the storage: the run may go on. With a checkpoint: old ones could not be removed."""
    error: BaseException | None = None
    """Anything else, `TakenOver` too: the run may not go on."""


class _Write:
    """One checkpoint on its way to storage, in a thread of its own."""

    def __init__(
        self,
        step: int,
        attempt: int,
        write: Callable[[], _Written],
        began: float,
        facts: Mapping[str, float],
    ):
        self.step, self.attempt, self._facts = step, attempt, facts
        self._write, self._began = write, began
        self._written = _Written()
        self._seconds = 0.0
        # A daemon: where the storage hangs, the process still ends (and the commit never happened).
        self._thread = threading.Thread(target=self._run, name=f"commit-{step}", daemon=True)
        self._thread.start()
        self._blocked_s = time.perf_counter() - began

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, is_cut: Callable[[], bool] = bool) -> _Written | None:
        """How it ended, None where the wait was cut; what the caller waits for it counts as blocked."""
        started = time.perf_counter()
        while not self.is_over and not is_cut():
            self._thread.join(LOOK_EVERY_S)
        self._blocked_s += time.perf_counter() - started
        return self._written if self.is_over else None

    def record(self) -> dict[str, Any]:
        """The values of the `commit` record. Only after `wait`."""
        return {"step": self.step, "seconds": self._seconds, "blocked_s": self._blocked_s, **self._facts}

    def _run(self) -> None:
        self._written = self._write()
        self._seconds = time.perf_counter() - self._began


class Committer:
    """Commits what one rank hands it; of a run's ranks only rank 0 does.

    Args:
        store: the run's checkpoints.
        journal: of the run.
        attempt: number of this start of the workers, or of this formation of them. It may be set anew between
            two commits; the memory that the copies need stays.
        sink: gets the `commit` records and, where the storage fails, a `note`; always in the thread that
            calls one of the methods below, since a trial's sink must not be called from another.
        keep: how many checkpoints stay in the store.
        is_cut: whether a rank that waits for a write has something else to do; the write goes on.
    """

    def __init__(
        self,
        store: CheckpointStore,
        journal: Journal,
        attempt: int,
        sink: Sink,
        keep: int,
        *,
        is_cut: Callable[[], bool] = bool,
    ):
        self.attempt = attempt
        self._store, self._journal, self._sink, self._keep = store, journal, sink, keep
        self._is_cut = is_cut
        self._images: dict[str, Image] = {}
        self._write: _Write | None = None
        self._last: Checkpoint | None = None
        self._failed: tuple[int, CheckpointError] | None = None  # attempt of the newest commit, and why

    def commit(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        segment: Segment,
        began: float | None = None,
        facts: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the state and begin to write it; waits for the commit before, but not for this one.

        Args:
            step: optimizer steps taken.
            tensors: as for `CheckpointStore.commit`; they may change as soon as this returns.
            state: the same; it must not change until the commit is over.
            segment: the journal's part of this commit; written before it counts.
            began: `time.perf_counter()` when the step began to be held up, where that was before this call.
            facts: more values for the `commit` record.

        Raises:
            PeerLost: another rank was lost while the commit before was waited for, which goes on.
            TakenOver: a newer attempt of the run has begun to commit, as the commit before has found.
            TypeError: a tensor or a value is of a kind that cannot be saved.
        """
        self.wait()
        began = time.perf_counter() if began is None else began
        self._fill(tensors)
        attempt, images = self.attempt, dict(self._images)

        def write() -> _Written:
            return self._commit_now(step, attempt, images, state, segment)

        self._write = _Write(step, attempt, write, began, facts or {})

    def poll(self) -> None:
        """Tell of a commit that is over, without waiting for one that is not. Raises: as `commit`."""
        if self._write is not None and self._write.is_over:
            self.wait()

    def wait(self) -> Checkpoint | None:
        """The newest checkpoint that this committer has written, after waiting for the one under way.

        None where it has written none; where the newest could not be written, the one before. Raises: as
        `commit`, but nothing for storage trouble, which a note tells.
        """
        write = self._write
        if write is None:
            return self._last
        written = write.wait(self._is_cut)
        if written is None:
            raise PeerLost(f"another rank was lost while checkpoint step {write.step} was being written")
        self._write = None
        if isinstance(written.error, TakenOver) and write.attempt < self.attempt:
            return self._last  # by the formation that this rank is in now: another rank writes there
        if written.error is not None:
            raise written.error
        self._failed = None
        if written.checkpoint is None and written.trouble is not None:
            self._failed = (write.attempt, written.trouble)
        elif written.checkpoint is not None:
            self._last = written.checkpoint
            self._sink.put("commit", **write.record())
        if written.trouble is not None:
            self._sink.put(
                "note", text=f"{written.trouble}; training goes on, and the next commit tries again"
            )
        return self._last

    def flush_final(self) -> Checkpoint | None:
        """As `wait`, for the end of a run, whose last commit must be in the storage.

        Raises: CheckpointError: the last commit of this attempt could not be written; TakenOver.
        """
        last = self.wait()
        if self._failed is not None and self._failed[0] == self.attempt:
            raise self._failed[1]
        return last

    def close(self) -> None:
        """Wait for the write under way, say nothing of it, and give the memory back. Twice is fine."""
        write, self._write = self._write, None
        if write is not None:
            write.wait()
        self._images.clear()

    def _fill(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Bring the images to `tensors`; one is made anew only where its layout has changed."""
        for name in self._images.keys() - tensors.keys():
            del self._images[name]
        for name, group in tensors.items():
            image = self._images.get(name)
            if image is not None and image.fits(group):
                image.fill(group)
            else:
                self._images.pop(name, None)  # not both at once in memory
                del image
                self._images[name] = Image(group)

    def _commit_now(
        self,
        step: int,
        attempt: int,
        images: Mapping[str, Image],
        state: Mapping[str, Any],
        segment: Segment,
    ) -> _Written:
        """The writing thread's work."""
        checkpoint = None
        try:
            checkpoint = self._store.commit(
                step,
                attempt=attempt,
                tensors=images,
                state=state,
                before_commit=lambda: self._journal.write(segment),
            )
            self._store.prune(self._keep)
        except TakenOver as error:
            return _Written(error=error)
        except CheckpointError as error:
            return _Written(checkpoint, trouble=error)
        except BaseException as error:
            return _Written(error=error)
        return _Written(checkpoint)
