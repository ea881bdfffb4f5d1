"""Checkpoints that do not hold up the run: the state is copied to host memory, a thread writes it from there.

What only an optimizer's step changes is copied by that thread too, beside the next forward and backward
passes; who changes it waits for the copy first (`await_copies`).

One write at a time, from one set of buffers that stay: a commit waits for the one before, so what a run may
have to redo is never more than two intervals. Storage trouble does not end the run before its end.

Source: CheckFreq (Mohan et al., FAST 2021): two phases, of which the snapshot runs beside compute up to the
update, and the write beside everything.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from eagleray.errors import CheckpointError, PeerLost, TakenOver
from eagleray.packaging import Checkpoint, CheckpointStore, Image
from eagleray.packaging.journal import Journal, Segment
from eagleray.training.telemetry import Sink

if TYPE_CHECKING:
    from torch import Tensor


Groups: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"
"""Tensors by file name and name."""
Later: TypeAlias = "Callable[[], tuple[Groups, Mapping[str, Any]]]"
"""Gives tensors and a part of the state, in the writing thread."""
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
    """One checkpoint on its way to storage.

    Args:
        step: optimizer steps taken.
        attempt: the committer's at that time.
        copy: what is left of copying; gives the state that is no tensors.
        write: takes that.
        began: `time.perf_counter()` when the step began to be held up.
        facts: more values for the record.
    """

    def __init__(
        self,
        step: int,
        attempt: int,
        copy: Callable[[], Mapping[str, Any]],
        write: Callable[[Mapping[str, Any]], _Written],
        *,
        began: float,
        facts: Mapping[str, float],
    ):
        self.step, self.attempt, self._facts = step, attempt, facts
        self._copy: Callable[[], Mapping[str, Any]] | None = copy
        self._write, self._began = write, began
        self._written = _Written()
        self._seconds = self._blocked_s = 0.0
        self._copied, self._over = threading.Event(), threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def run(self) -> None:
        """The writing thread's work."""
        copy, self._copy = self._copy, None
        assert copy is not None
        try:
            state = copy()
            del copy  # with what it has copied: a commit is to hold one copy of the state, not two
            self._copied.set()
            self._written = self._write(state)
        except BaseException as error:
            self._written = _Written(error=error)
        finally:
            self._seconds = time.perf_counter() - self._began
            self._copied.set()
            self._over.set()

    def goes_on(self) -> None:
        """The step is held up no longer."""
        self._blocked_s = time.perf_counter() - self._began

    def await_copies(self) -> None:
        """Return when all is copied; what the caller waits for it counts as blocked."""
        if not self._copied.is_set():
            started = time.perf_counter()
            self._copied.wait()
            self._blocked_s += time.perf_counter() - started

    def wait(self, is_cut: Callable[[], bool] = bool) -> _Written | None:
        """How it ended, None where the wait was cut; what the caller waits for it counts as blocked."""
        started = time.perf_counter()
        while not self.is_over and not is_cut():
            self._over.wait(LOOK_EVERY_S)
        self._blocked_s += time.perf_counter() - started
        return self._written if self.is_over else None

    def record(self) -> dict[str, Any]:
        """The values of the `commit` record. Only after `wait`."""
        return {"step": self.step, "seconds": self._seconds, "blocked_s": self._blocked_s, **self._facts}


class _Writer:
    """A thread that writes what it is given, in turn: starting one for each would take as long as a copy."""

    def __init__(self) -> None:
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        # A daemon: where the storage hangs, the process still ends (and the commit never happened).
        threading.Thread(target=self._run, name="commit", daemon=True).start()

    def take(self, write: _Write) -> None:
        """Begin with it when those before are over."""
        self._writes.put(write)

    def close(self) -> None:
        """End when all is written."""
        self._writes.put(None)

    def _run(self) -> None:
        while (write := self._writes.get()) is not None:
            write.run()


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
        self._writer: _Writer | None = None
        self._write: _Write | None = None
        self._last: Checkpoint | None = None
        self._failed: tuple[int, CheckpointError] | None = None  # attempt of the newest commit, and why

    def commit(
        self,
        step: int,
        tensors: Groups,
        state: Mapping[str, Any],
        *,
        segment: Segment,
        later: Later = lambda: ({}, {}),
        began: float | None = None,
        facts: Mapping[str, float] | None = None,
    ) -> None:
        """Copy the state and begin to write it; waits for the commit before, but not for this one.

        Args:
            step: optimizer steps taken.
            tensors: as for `CheckpointStore.commit`; they may change as soon as this returns.
            state: the same; it must not change until the commit is over.
            segment: the journal's part of this commit; written before it counts.
            later: gives more of both. What it looks at must stay as it is until `await_copies` returns.
            began: `time.perf_counter()` when the step began to be held up, where that was before this call.
            facts: more values for the `commit` record.

        Raises:
            PeerLost: another rank was lost while the commit before was waited for, which goes on.
            TakenOver: a newer attempt of the run has begun to commit, as the commit before has found.
            TypeError: a tensor or a value is of a kind that cannot be saved; or it was, of the commit before.
        """
        self.wait()
        began = time.perf_counter() if began is None else began
        self._fill(tensors)
        attempt, names = self.attempt, set(tensors)

        def copy() -> Mapping[str, Any]:
            more, rest = later()
            self._fill(more)
            self._keep_only(names | more.keys())
            return {**state, **rest}

        def write(state: Mapping[str, Any]) -> _Written:
            return self._commit_now(step, attempt, state, segment)

        self._write = _Write(step, attempt, copy, write, began=began, facts=facts or {})
        if self._writer is None:
            self._writer = _Writer()
        self._writer.take(self._write)
        self._write.goes_on()

    def await_copies(self) -> None:
        """Return when what the last commit looks at `later` may change."""
        if self._write is not None:
            self._write.await_copies()

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
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._images.clear()

    def _keep_only(self, names: Set[str]) -> None:
        for name in self._images.keys() - names:
            del self._images[name]

    def _fill(self, tensors: Groups) -> None:
        """Bring the images to `tensors`; one is made anew only where its layout has changed."""
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
        state: Mapping[str, Any],
        segment: Segment,
    ) -> _Written:
        """The writing thread's work."""
        checkpoint = None
        try:
            checkpoint = self._store.commit(
                step,
                attempt=attempt,
                tensors=self._images,  # as they are until the next commit, which waits for this one
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
