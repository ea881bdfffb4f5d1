"""The engine: one thread that exchanges buckets, in the order in which DDP gives them.

It is the only code that sends gradients. One thread, because DDP launches its buckets in index order
everywhere, and what is sent in another order would not meet its like. While a bucket waits for the network
the next one is begun: `Plan.run` is a generator that yields before each wait.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import math
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.futures import Future

from eagleray import groups
from eagleray.compression.compressor import Compressor, Plan
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import RESIDUAL, Memory
from eagleray.compression.stats import NonFinite, Stats
from eagleray.compression.wire import Step, Wire, ring_bytes
from eagleray.errors import EaglerayError, PeerLost, TrainingError

Result = TypeVar("Result")
SAMPLED_EVERY = 50
"""Steps from one measurement of the relative error to the next; the first is the second step's."""
_JOIN_S = 2.0
_SETTLE_S = 10.0
"""At the end: how long the peers may take nothing of what the last step has sent."""
_POLL_S = 0.01
GUARDED_STEPS = 1000
"""For so many steps after one that was not finite, residuals are copied before each is exchanged, so that the
next such step takes nothing of them along; with a loss scale always, where such steps are everyday. Else only
from the bucket on of which it is known."""
_log = logging.getLogger("eagleray.compression")


@dataclass
class Job:
    """One bucket of one step."""

    bucket: Bucket
    gradient: Tensor
    """[N]; holds the mean over the ranks when the future is done."""
    step: Step
    future: Future[Tensor]
    ready: torch.Event | None = None
    """On CUDA: when the gradient is there."""
    is_last: bool = True
    """Of its step."""
    failure: EaglerayError | None = field(default=None)


@dataclass
class _Call:
    """Something else for the thread to do, between two steps."""

    function: Callable[[Wire], Any]
    result: concurrent.futures.Future[Any] = field(default_factory=concurrent.futures.Future)


@dataclass
class _Running:
    """A bucket whose exchange has begun."""

    job: Job
    work: Tensor
    """The gradient, or a float32 copy of it."""
    generator: Generator[None, None, int]
    signal: Tensor | None = None
    """Where this step is sampled: the squared norm of what is to be sent."""
    error: float | None = None
    """The relative error, where it is sampled and over."""
    has_begun: bool = False


class Engine:
    """Exchanges the gradients of one model on one rank.

    With peers a thread does it, started at once. A rank alone does it in `submit`: there is nobody to wait
    for.
    """

    def __init__(self, compressor: Compressor, group: groups.Group, layout: Layout, memory: Memory):
        self.layout, self.memory = layout, memory
        self.stats, self.non_finite = Stats(), NonFinite()
        self.buckets: dict[tuple[str, ...], Stats] = {}
        """The same by bucket, of those that DDP has at the moment; a key is the parameters' names."""
        self._group, self._wire = group, Wire(group, layout.digest)
        self._jobs: queue.SimpleQueue[Job | _Call | None] = queue.SimpleQueue()
        self._running: deque[_Running] = deque()
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._copies: dict[tuple[str, ...], Tensor] = {}
        self._bad: str | None = None
        self._guarded_until, self._is_whole = 0, True
        """Up to which step all can be taken back; and whether all of this one can."""
        self._lost = self._wanted = 0.0
        self._error: float | None = None
        self._stream: torch.cuda.Stream | None = None
        self._failure: EaglerayError | None = None
        self._is_ending = False
        """All buckets are done, and no more will come."""
        self.compressor = compressor
        compressor.bind(layout, self._wire, memory)
        self._wire.scheme = compressor.name
        self._thread: threading.Thread | None = None
        if group.world_size > 1:
            self._thread = threading.Thread(target=self._run, name=f"eagleray-{group.name}", daemon=True)
            self._thread.start()
            atexit.register(self.close)  # a thread in C++ while Python ends would end the process by SIGABRT

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for another rank at the moment; from any thread."""
        return self._wire.is_waiting

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

    def call(self, function: Callable[[Wire], Result]) -> Result:
        """The result of `function`, run in the engine's thread after all buckets given before.

        For what the ranks do together between two steps: what it raises ends the engine. All ranks must call
        it with the like.
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
        return call.result.result()

    def close(self) -> None:
        """End the thread; what is pending fails. Twice is fine.

        What the last step has sent reaches the peers first, who would wait for it in vain. One that takes
        nothing, or that this rank waits for, is not waited for longer than some seconds.
        """
        if self._thread is None:
            self._failure = self._failure or self._closed()
            return
        atexit.unregister(self.close)
        self._jobs.put(None)
        self._thread.join(_JOIN_S)
        if self._is_ending:
            self._await_peers(self._thread)
        if self._thread.is_alive():  # a peer does not answer
            groups.break_groups()
            self._thread.join(_JOIN_S)

    def _await_peers(self, thread: threading.Thread) -> None:
        """Return when the peers have all that was sent, or take none of it any more."""
        least, since = (sys.maxsize, 0), time.monotonic()
        while True:
            left = self._wire.num_unsettled + thread.is_alive(), groups.unsent_bytes(self._group)
            if left == (0, 0) or (left >= least and time.monotonic() - since > _SETTLE_S):
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

    def _answer(self, call: _Call) -> None:
        """Do it, on the stream of the buckets."""
        device = self.memory.device
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
            call.result.set_exception(error)
            raise

    def _start(self, job: Job) -> None:
        """Begin a bucket: up to its first wait."""
        self._wire.settle(job.step.number)
        plan = self._plan_of(job)
        work = job.gradient
        if work.dtype != torch.float32 and not self.compressor.keeps_dtype:
            if job.bucket.key not in self._copies:
                self._copies[job.bucket.key] = torch.empty_like(work, dtype=torch.float32)
            work = self._copies[job.bucket.key]
        running = _Running(job, work, plan.run(work, job.step))
        self._running.append(running)
        self._advance(running)

    def _advance(self, running: _Running) -> None:
        """One move of a bucket; where it was the last, the future is done."""
        job = running.job
        if job.ready is None:
            self._move(running)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(job.gradient.device)
        with torch.cuda.stream(self._stream):
            if not running.has_begun:
                self._stream.wait_event(job.ready)
            self._move(running)  # the future records an event on this stream, for which DDP waits

    def _move(self, running: _Running) -> None:
        started, before = time.perf_counter(), self._reading()
        job, was_begun = running.job, running.has_begun
        if not was_begun:
            running.has_begun = True
            if self._bad is not None or self._is_guarded(job.step):
                self.memory.keep(job.bucket.places)
            if running.work is not job.gradient:
                running.work.copy_(job.gradient)
            if self.memory.owed:
                self.memory.repay(job.bucket.parts, running.work, job.step.loss_scale)
            if job.step.number % SAMPLED_EVERY == 2:
                running.signal = self._signal(running)
        try:
            next(running.generator)
            bad, is_done = -1, False
        except StopIteration as stop:
            bad, is_done = stop.value, True
        if is_done:
            if running.work is not job.gradient:
                job.gradient.copy_(running.work)
            self._conclude(running, bad)
        self._count(running, time.perf_counter() - started, before, was_begun=was_begun, is_done=is_done)
        if is_done:
            self._running.remove(running)
            job.future.set_result(job.gradient)

    def _conclude(self, running: _Running, bad: int) -> None:
        """Note the relative error, and what was not finite."""
        job = running.job
        if running.signal is not None:
            lost, signal = float(self._over_residual(job, lambda start, kept: kept)), float(running.signal)
            running.error = math.sqrt(lost / max(signal, 1e-38))
            self._lost, self._wanted = self._lost + lost, self._wanted + signal
        if job.is_last and self._wanted:
            self._error = math.sqrt(self._lost / self._wanted)
            self._lost = self._wanted = 0.0
        if bad >= 0:
            self._bad = self._bad or job.bucket.key[bad]
        self._is_whole &= self.memory.has_kept(job.bucket.places)
        if job.is_last:
            self._judge(job.step)

    def _judge(self, step: Step) -> None:
        """The step is over: what it has made of the memory stays, or is taken back."""
        self.non_finite = self.non_finite.then(self._bad, is_whole=self._is_whole)
        if self._bad is None:
            self.memory.let_go(free=not self._is_guarded(step))
        else:
            self.memory.take_back()
            self._guarded_until = step.number + GUARDED_STEPS
            if not self._is_whole and self._group.rank == 0:
                _log.warning(
                    "compression: %s was not finite in step %d: what was sent of residuals until that was "
                    "known is lost; the next %d can be taken back", self._bad, step.number, GUARDED_STEPS,
                )  # fmt: skip
        self._bad, self._is_whole = None, True

    def _is_guarded(self, step: Step) -> bool:
        """Whether it is likely enough that the step is not finite."""
        return step.loss_scale != 1.0 or step.number <= self._guarded_until

    def _signal(self, running: _Running) -> Tensor | None:
        """Squared norm of g + e over the bucket, without the loss scale; None where nothing is kept."""
        if RESIDUAL not in self.memory.flats:
            return None
        scale = 1 / running.job.step.loss_scale
        return self._over_residual(
            running.job,
            lambda start, kept: torch.add(kept, running.work[start : start + kept.numel()], alpha=scale),
        )

    def _over_residual(self, job: Job, value: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Squared norm of `value(first element in the gradient, residual)` over the bucket's parameters."""
        flat = self.memory.flat(RESIDUAL, "mean")
        norms = [
            torch.linalg.vector_norm(value(start, flat[place.start : place.start + place.numel]))
            for place, start in job.bucket.parts
        ]
        return torch.stack(norms).square().sum()

    def _plan_of(self, job: Job) -> Plan:
        """The bucket's plan with its buffers, kept for as long as DDP keeps the bucket."""
        key = job.bucket.key
        plan = self._plans.get(key)
        if plan is None:
            for stale in [other for other in self._plans if not set(key).isdisjoint(other)]:
                del self._plans[stale]  # DDP has cut its buckets otherwise since
                self._copies.pop(stale, None)
                self.buckets.pop(stale, None)
            self._wire.make_room(job.bucket.numel)
            plan = self._plans[key] = self.compressor.plan(job.bucket, job.gradient.device)
        return plan

    def _reading(self) -> tuple[int, int, int, float, float]:
        """The wire's counters."""
        wire = self._wire
        return wire.sent_bytes, wire.payload_bytes, wire.probe_bytes, wire.waited_s, wire.probe_s

    def _count(
        self, running: _Running, taken_s: float, before: tuple[float, ...], *, was_begun: bool, is_done: bool
    ) -> None:
        """Add one move of a bucket to the sums, the model's and the bucket's."""
        sent, payload, probed, waited_s, probe_s = (
            now - then for now, then in zip(self._reading(), before, strict=True)
        )
        gradient, key = running.job.gradient, running.job.bucket.key
        busy_s = taken_s - waited_s - probe_s
        more = Stats(
            sent_bytes=int(sent),
            payload_bytes=int(payload),
            uncompressed_bytes=ring_bytes(gradient.nbytes, self._group.world_size) if is_done else 0,
            num_buckets=int(is_done),
            encode_s=0.0 if was_begun else busy_s,
            exchange_s=waited_s,
            decode_s=busy_s if was_begun else 0.0,
            relative_error=running.error,
            probe_bytes=int(probed),
        )
        self.stats = self.stats.plus(replace(more, relative_error=self._error))
        self.buckets[key] = self.buckets.get(key, Stats()).plus(more)

    def _closed(self) -> PeerLost:
        return PeerLost(f"rank {self._group.rank}: the gradient engine was closed")

    def _explain(self, job: Job | None, error: Exception) -> EaglerayError:
        kind = PeerLost if isinstance(error, PeerLost) else TrainingError
        said = str(error) if isinstance(error, EaglerayError) else f"{type(error).__name__}: {error}"
        if job is None:
            return kind(f"rank {self._group.rank} of {self._group.world_size}: {said}")
        first, *others = job.bucket.key
        more = f" and {len(others)} more" if others else ""
        return kind(
            f"rank {self._group.rank} of {self._group.world_size}: exchanging gradients failed in "
            f"step {job.step.number} since the hook was attached, bucket {job.step.bucket} ({first}{more}): "
            f"{said}"
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
