"""The engine: one thread that exchanges buckets, in the order in which DDP gives them.

It is the only code that sends gradients. One thread, because DDP launches its buckets in index order
everywhere, and what is sent in another order would not meet its like. While a bucket waits for the network
the next one is begun: `Plan.run` is a generator that yields before each wait.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from eagleray import groups
from eagleray.compression.compressor import Compressor, Plan
from eagleray.compression.guard import Guard
from eagleray.compression.jobs import Job, Running
from eagleray.compression.layout import Layout
from eagleray.compression.memory import Memory
from eagleray.compression.meter import Meter
from eagleray.compression.wire import Wire
from eagleray.errors import EaglerayError, InputError, PeerLost, TrainingError

Result = TypeVar("Result")
PATIENCE_S = 5.0
"""So long a rank may keep the others waiting in what all must call, before they say so."""
_JOIN_S = 2.0
_SETTLE_S = 10.0
"""At the end: how long the peers may take nothing of what the last step has sent."""
_POLL_S = 0.01
_LOOK_S = 0.1
_log = logging.getLogger("eagleray.compression")


@dataclass
class _Call:
    """Something else for the thread to do, between two steps."""

    function: Callable[[Wire], Any]
    result: concurrent.futures.Future[Any] = field(default_factory=concurrent.futures.Future)


class Engine:
    """Exchanges the gradients of one model on one rank.

    With peers a thread does it, started at once. A rank alone does it in `submit`: there is nobody to wait
    for.
    """

    def __init__(self, compressor: Compressor, group: groups.Group, layout: Layout, memory: Memory):
        self.layout, self.memory = layout, memory
        self._group, self._wire = group, Wire(group, layout.digest)
        self.meter, self.guard = Meter(self._wire, memory), Guard(memory, group.rank)
        self._jobs: queue.SimpleQueue[Job | _Call | None] = queue.SimpleQueue()
        self._running: deque[Running] = deque()
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._copies: dict[tuple[str, ...], Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._failure: EaglerayError | None = None
        self._held: Job | _Call | None = None
        """What the thread works on, where that is not among `_running`."""
        self._is_watched = False
        self._is_ending = False
        """All buckets are done, and no more will come."""
        self.compressor = compressor
        compressor.bind(layout, self._wire, memory)
        self._wire.scheme = compressor.name
        self._thread: threading.Thread | None = None
        if group.world_size > 1:
            self._thread = threading.Thread(target=self._run, name=f"eagleray-{group.name}", daemon=True)
            self._thread.start()
            groups.call_when_broken(group, self._begin_watch)
            atexit.register(self.close)  # a thread in C++ while Python ends would end the process by SIGABRT

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for another rank at the moment; from any thread."""
        return self._wire.waiting is not None

    def submit(self, job: Job) -> None:
        """Take a bucket; when its future is done, its gradient is the mean, or `job.failure` says why not."""
        if self._failure is not None:
            self._fail(job)
        elif self._thread is None:
            self._start(job)
            while self._running:
                self._advance(self._running[0])
        else:
            self._jobs.put(job)
            if self._failure is not None:  # the thread ended in between
                self._fail_queued()

    def call(self, what: str, function: Callable[[Wire], Result]) -> Result:
        """The result of `function`, run in the engine's thread after all buckets given before.

        For what the ranks do together between two steps: what it raises ends the engine. All ranks must call
        it with the like; those that others wait for are named in the log, as what does not come to `what`.
        """
        if self._failure is not None:
            raise self._failure
        call = _Call(function)
        if self._thread is None:
            self._answer(call)
        else:
            self._jobs.put(call)
            if self._failure is not None:  # the thread ended in between
                self._fail_queued()
        return self._await(call.result, what)

    def _await(self, result: concurrent.futures.Future[Result], what: str) -> Result:
        """The result; a line says whom it waits for, if one message takes long to begin."""
        while not concurrent.futures.wait([result], PATIENCE_S).done:
            waiting = self._wire.waiting
            missing = [] if waiting is None else waiting.missing()
            if waiting is None or not missing or time.perf_counter() - waiting.since_s < PATIENCE_S:
                continue
            _log.warning(
                "compression: rank %d has called %s and waits for rank %s: every rank must call it, at the "
                "same place between two steps (never under `if rank == 0`)",
                self._group.rank, what, " and rank ".join(map(str, missing)),
            )  # fmt: skip
            break
        return result.result()

    def close(self) -> None:
        """End the thread; what is pending fails. Twice is fine.

        What the last step has sent reaches the peers first, who would wait for it in vain. One that takes
        nothing, or that this rank waits for, is not waited for longer than some seconds.
        """
        if self._thread is None:
            self._failure = self._failure or self._closed()
            return
        atexit.unregister(self.close)
        if self._wire.waits.is_given_up:
            return
        self._jobs.put(None)
        self._join(self._thread)
        if self._is_ending:
            self._await_peers(self._thread)
        if self._thread.is_alive():  # a peer does not answer
            groups.break_groups()
            self._join(self._thread)

    def _join(self, thread: threading.Thread) -> None:
        """Return when it has ended, was given up, or after some seconds."""
        until_s = time.monotonic() + _JOIN_S
        while thread.is_alive() and not self._wire.waits.is_given_up and time.monotonic() < until_s:
            thread.join(_POLL_S)

    def _await_peers(self, thread: threading.Thread) -> None:
        """Return when the peers have all that was sent, or take none of it any more.

        At once where the group is broken: a host that was cut off would have it for as long as TCP hopes.
        """
        least, since = (sys.maxsize, 0), time.monotonic()
        while True:
            left = self._wire.num_unsettled + thread.is_alive(), groups.unsent_bytes(self._group)
            if left == (0, 0) or groups.are_broken():
                return
            if left >= least and time.monotonic() - since > _SETTLE_S:
                return
            if left < least:
                least, since = left, time.monotonic()
            time.sleep(_POLL_S)

    def _run(self) -> None:
        job: Job | None = None
        try:
            while True:
                job = None
                job = self._next_job()
                if job is not None:
                    self._start(job)
                elif self._running:
                    job = self._running[0].job
                    self._advance(self._running[0])
                else:
                    self._failure = self._closed()
                    self._is_ending = True
                    self._wire.finish()
                    break
        except Exception as error:
            if self._wire.waits.is_given_up:
                return  # there may be other groups by now
            self._failure = self._explain(job, error)
            self._failure.__cause__ = error
            groups.break_groups()  # wakes peers that wait for somebody else than the one who died
            if job is not None and all(job is not one.job for one in self._running):
                self._fail(job)
        while self._running:
            self._fail(self._running.popleft().job)
        self._fail_queued()
        self._plans.clear()

    def _next_job(self) -> Job | None:
        """A bucket to begin now, or None: go on with those begun (or end, if there are none)."""
        if not self._running:
            job = self._jobs.get()
            while isinstance(job, _Call):
                self._answer(job)
                job = self._jobs.get()
            return job
        if len(self._running) >= self._wire.at_once:
            return None
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            return None
        if not isinstance(job, Job):
            self._jobs.put(job)  # read again when the others are done
            return None
        return job

    def _begin_watch(self) -> None:
        """The group was broken, which wakes the thread; unless gloo has lost sight of what it waits for."""
        if not self._is_watched and threading.current_thread() is not self._thread:
            self._is_watched = True
            threading.Thread(target=self._watch, name=f"eagleray-{self._group.name}-end", daemon=True).start()

    def _watch(self) -> None:
        thread = self._thread
        assert thread is not None
        thread.join(groups.WAKES_S)
        while thread.is_alive() and groups.broken_s(self._group):
            if self._wire.waits.give_up(groups.WAKES_S):
                self._give_up()
                return
            thread.join(_LOOK_S)

    def _give_up(self) -> None:
        """Fail what the thread was given: it waits in the group for good, and touches nothing any more."""
        groups.leave(self._group)
        lost = PeerLost("the connection to another rank was lost in the middle of a message")
        jobs, held = [one.job for one in self._running], self._held
        if isinstance(held, Job):
            jobs.append(held)
        self._failure = self._explain(jobs[0] if jobs else None, lost)
        for job in jobs:
            self._fail(job)
        if isinstance(held, _Call):
            held.result.set_exception(self._failure)
        self._fail_queued()

    def _answer(self, call: _Call) -> None:
        """Do it, on the stream of the buckets."""
        device = self.memory.device
        self._held = call
        try:
            if device.type != "cuda":
                call.result.set_result(call.function(self._wire))
                return
            self._stream = self._stream or torch.cuda.Stream(device)
            with torch.cuda.stream(self._stream):
                found = call.function(self._wire)
            self._stream.synchronize()
            call.result.set_result(found)
        except Exception as error:
            if not self._wire.waits.is_given_up:
                call.result.set_exception(error)
            raise
        finally:
            self._held = None

    def _start(self, job: Job) -> None:
        """Begin a bucket: up to its first wait.

        On CUDA its buffers, too, are made on the engine's stream: what fills them would else run on another,
        behind all of backward, maybe after the first encode.
        """
        self._held = job
        self._wire.settle(job.step.number)
        if job.ready is None:
            self._begin(job)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(job.gradient.device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(job.ready)
            self._begin(job)

    def _begin(self, job: Job) -> None:
        plan = self._plan_of(job)
        work = job.gradient
        if work.dtype != torch.float32 and not self.compressor.keeps_dtype:
            if job.bucket.key not in self._copies:
                self._copies[job.bucket.key] = torch.empty_like(work, dtype=torch.float32)
            work = self._copies[job.bucket.key]
        running = Running(job, work, plan.run(work, job.step))
        self._running.append(running)
        self._held = None
        self._move(running)

    def _advance(self, running: Running) -> None:
        """One move of a bucket; where it was the last, the future is done."""
        with nullcontext() if running.job.ready is None else torch.cuda.stream(self._stream):
            self._move(running)  # the future records an event on this stream, for which DDP waits

    def _move(self, running: Running) -> None:
        before = self.meter.read()
        job, was_begun = running.job, running.has_begun
        if not was_begun:
            running.has_begun = True
            self.guard.begin(job)
            if running.work is not job.gradient:
                running.work.copy_(job.gradient)
            if self.memory.owed:
                self.memory.repay(job.bucket.parts, running.work, job.step.loss_scale)
            self.meter.begin(running)
        try:
            next(running.generator)
            bad, is_done = -1, False
        except StopIteration as stop:
            bad, is_done = stop.value, True
        if is_done:
            if running.work is not job.gradient:
                job.gradient.copy_(running.work)
            self.meter.conclude(running)
            self.guard.conclude(job, bad)
        self.meter.add(running, before, was_begun=was_begun, is_done=is_done)
        if is_done:
            self._running.remove(running)
            job.future.set_result(job.gradient)

    def _plan_of(self, job: Job) -> Plan:
        """The bucket's plan with its buffers, kept for as long as DDP keeps the bucket."""
        key = job.bucket.key
        plan = self._plans.get(key)
        if plan is None:
            for stale in [other for other in self._plans if not set(key).isdisjoint(other)]:
                del self._plans[stale]  # DDP has cut its buckets otherwise since
                self._copies.pop(stale, None)
                self.meter.buckets.pop(stale, None)
            self._wire.make_room(job.bucket.numel)
            plan = self._plans[key] = self.compressor.plan(job.bucket, job.gradient.device)
        return plan

    def _closed(self) -> InputError:
        return InputError(
            f"rank {self._group.rank} of {self._group.world_size}: its compression hook has been closed "
            "(hook.close()), so no more gradients are exchanged; close it after the last backward pass, or "
            "wrap the module in a new DistributedDataParallel and attach to that"
        )

    def _explain(self, job: Job | None, error: Exception) -> EaglerayError:
        kind = PeerLost if isinstance(error, PeerLost) else TrainingError
        said = str(error) if isinstance(error, EaglerayError) else f"{type(error).__name__}: {error}"
        if job is None:
            return kind(f"rank {self._group.rank} of {self._group.world_size}: {said}")
        first, *others = job.bucket.key
        more = f" and {len(others)} more" if others else ""
        return kind(
            f"rank {self._group.rank} of {self._group.world_size}: exchanging gradients failed in "
            f"step {job.step.number} since the hook was attached, bucket {job.step.bucket} ({first}{more}; "
            f"compression {self.compressor.name}): {said}"
        )

    def _fail(self, job: Job) -> None:
        """Wake whoever waits for the job. The value does not matter: the hook looks at `failure` first."""
        job.failure = self._failure
        job.future.set_result(job.gradient)

    def _fail_queued(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if isinstance(job, _Call):
                assert self._failure is not None
                job.result.set_exception(self._failure)
            elif job is not None:
                self._fail(job)
