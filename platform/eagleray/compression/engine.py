"""The engine: one thread that encodes, exchanges and decodes buckets, in the order in which DDP gives them.

It is the only code that sends gradients. One thread, because collectives of one group must be issued in the
same order on all ranks, and DDP launches its buckets in index order everywhere.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.futures import Future

from eagleray import groups
from eagleray.compression.compressor import Compressor
from eagleray.compression.exchange import Exchange, make_exchange
from eagleray.compression.stats import Stats, ring_bytes
from eagleray.errors import EaglerayError, PeerLost, TrainingError

_JOIN_S = 2.0


@dataclass
class Job:
    """One bucket of one step."""

    key: tuple[str, ...]
    """Names of the bucket's parameters: bucket indices change after the first step."""
    gradient: Tensor
    """[N]; holds the mean over the ranks when the future is done."""
    step: int
    index: int
    future: Future[Tensor]
    ready: torch.Event | None = None
    """On CUDA: when the gradient is there."""
    failure: EaglerayError | None = field(default=None)


class Engine:
    """Exchanges gradients over `group` with `compressor`; starts its thread at once where there are peers."""

    def __init__(self, compressor: Compressor, group: groups.Group):
        self._compressor, self._group = compressor, group
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._exchanges: dict[tuple[str, ...], tuple[int, Exchange]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._failure: EaglerayError | None = None
        self.stats = Stats()
        self._thread = threading.Thread(target=self._run, name=f"eagleray-{group.name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a bucket; when its future is done, its gradient is the mean, or `job.failure` says why not."""
        if self._failure is not None:
            self._fail(job)
            return
        self._jobs.put(job)
        if self._failure is not None:  # the thread ended in between
            self._fail_queued()

    def close(self) -> None:
        """End the thread; what is pending fails. Never takes longer than a few seconds; twice is fine."""
        self._jobs.put(None)
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():  # a peer does not answer
            groups.break_groups()
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._exchange(job)
            except Exception as error:
                self._failure = self._explain(job, error)
                self._failure.__cause__ = error
                groups.break_groups()  # wakes peers that wait for somebody else than the one who died
                self._fail(job)
                break
        else:
            self._failure = PeerLost(f"rank {self._group.rank}: the gradient engine was closed")
        self._fail_queued()
        self._exchanges.clear()

    def _exchange(self, job: Job) -> None:
        if job.ready is None:
            self._encode_exchange_decode(job)
            job.future.set_result(job.gradient)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(job.gradient.device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(job.ready)
            self._encode_exchange_decode(job)
            job.future.set_result(job.gradient)  # records an event on this stream, for which DDP waits

    def _encode_exchange_decode(self, job: Job) -> None:
        started = time.perf_counter()
        exchange = self._exchange_of(job)
        if exchange.payload.data_ptr() != job.gradient.data_ptr():
            self._compressor.encode(job.gradient, exchange.payload)
        encoded = time.perf_counter()
        try:
            exchange.send()
        except RuntimeError as error:  # what torch raises for a lost connection and for a time-out
            raise PeerLost(f"{error}; another rank died or stopped answering") from error
        exchanged = time.perf_counter()
        exchange.read(job.gradient)
        self._count(job.gradient, exchange.payload, started, encoded, exchanged)

    def _exchange_of(self, job: Job) -> Exchange:
        """The bucket's exchange with its buffers, kept for as long as DDP keeps the bucket."""
        address = job.gradient.data_ptr()
        known = self._exchanges.get(job.key)
        if known is not None and known[0] == address:
            return known[1]
        self._forget(set(job.key))
        exchange = make_exchange(job.gradient, self._compressor, self._group)
        self._exchanges[job.key] = (address, exchange)
        return exchange

    def _forget(self, names: set[str]) -> None:
        """Drop the buffers of buckets that DDP has since cut otherwise."""
        stale = [key for key in self._exchanges if not names.isdisjoint(key)]
        for key in stale:
            del self._exchanges[key]

    def _count(
        self, gradient: Tensor, payload: Tensor, started: float, encoded: float, exchanged: float
    ) -> None:
        stats, n = self.stats, self._group.world_size
        self.stats = replace(
            stats,
            sent_bytes=stats.sent_bytes + ring_bytes(payload.nbytes, n),
            uncompressed_bytes=stats.uncompressed_bytes + ring_bytes(gradient.nbytes, n),
            num_buckets=stats.num_buckets + 1,
            encode_s=stats.encode_s + encoded - started,
            exchange_s=stats.exchange_s + exchanged - encoded,
            decode_s=stats.decode_s + time.perf_counter() - exchanged,
        )

    def _explain(self, job: Job, error: Exception) -> EaglerayError:
        first, *others = job.key
        more = f" and {len(others)} more" if others else ""
        kind = PeerLost if isinstance(error, PeerLost) else TrainingError
        return kind(
            f"rank {self._group.rank} of {self._group.world_size}: exchanging gradients failed in "
            f"step {job.step} since the hook was attached, bucket {job.index} ({first}{more}): {error}"
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
            if job is not None:
                self._fail(job)
