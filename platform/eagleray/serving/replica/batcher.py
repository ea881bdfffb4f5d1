"""Several requests, one forward pass: never waiting for others, and on time where that can be.

    submit, flush (in the loop) -> queues by shape -> a pass, in the loop or the model's thread -> answers

No request waits while the model is idle: a lone one runs at once, and those that come meanwhile share the
next pass. So batches are as large as the load makes them.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from eagleray.errors import EaglerayError
from eagleray.serving.replica.counts import Counts
from eagleray.serving.replica.fit import Fits, Line
from eagleray.serving.replica.joining import Alike, Inputs, Joining, Outputs, num_samples

LOOP_S = 300e-6
"""A pass that takes less runs in the loop: to hand it to a thread and back takes half of that."""
PATIENCE_S = 1.0
"""The most urgent request is next; after so long one with a later deadline, or with none, is as urgent."""
NEVER = float("inf")
_NOTHING = Line(0.0, 0.0)
_log = logging.getLogger(__name__)


class Expired(EaglerayError):
    """The request's deadline passed before it was computed."""


class Cancelled(EaglerayError):
    """Nobody waited for the request any more, and it was not computed."""


class Timings(NamedTuple):
    """What became of a request's time."""

    queue_s: float
    """Until the model was free for it."""
    batch_s: float
    """Until its pass began: joined with others."""
    infer_s: float
    """Its pass."""
    batch_size: int
    """Samples of the pass."""


class Answer(NamedTuple):
    """How a request ended: with outputs, or with an error."""

    outputs: Outputs | None
    error: Exception | None
    timings: Timings | None
    """None where it was not computed."""


class Request:
    """One request on its way. `on_answer` is called once, in the owner's loop, whatever becomes of it."""

    __slots__ = (
        *("arrived_s", "bucket", "deadline_s", "inputs", "is_over", "is_taken", "on_answer", "size"),
        "taken_s",
    )

    def __init__(
        self,
        inputs: Inputs,
        on_answer: Callable[[Answer], None],
        *,
        arrived_s: float,
        deadline_s: float = NEVER,
    ) -> None:
        """Args: inputs: Checked; unchanged until the answer. arrived_s: By the batcher's clock, as all."""
        self.inputs: Inputs | None = inputs
        self.on_answer, self.arrived_s, self.deadline_s = on_answer, arrived_s, deadline_s
        self.size = num_samples(inputs)
        self.bucket: Hashable = None
        self.taken_s = 0.0
        self.is_taken = False
        """Its pass has begun, or is about to."""
        self.is_over = False
        """It has its answer, or is about to get it."""


class Executor(Protocol):
    """The model's one thread."""

    def submit(self, fn: Callable[[], None], /) -> object:
        """Have the thread do it, after all that it was given before."""
        ...


_Entry = tuple[float, int, Request]
"""How urgent, and in which order they came."""


class Batcher:
    """Runs requests in passes of at most `max_batch_size` samples; one of more runs alone.

    `submit`, `cancel` and `flush` are for one thread, the owner's loop, which is where requests are answered.
    The numbers may be read from any.
    """

    def __init__(
        self,
        run: Callable[[Inputs], Outputs],
        *,
        max_batch_size: int,
        fit: Fits,
        executor: Executor,
        call_soon: Callable[[Callable[[], None]], object],
        joining: Joining | None = None,
        may_run_in_loop: bool = True,
        clock: Callable[[], float] = time.monotonic,
        busy_clock: Callable[[], float] | None = None,
    ) -> None:
        """A batcher without requests.

        Args:
            run: One forward pass; called in the loop or by the executor, never twice at a time.
            max_batch_size: Samples of one pass.
            fit: What a pass takes; learns from each.
            executor: For passes that would hold up the loop.
            call_soon: Has the owner's loop call something; may be called from any thread.
            joining: Which requests fit together; those of the same shapes where it is not given.
            may_run_in_loop: Whether nothing else uses the model in the executor.
            clock: Seconds.
            busy_clock: Seconds in which this thread computed: what a pass would take in the loop. In the
                thread it takes longer, for it waits for the interpreter where the loop has it, and would
                stay there for that. `clock` where it is not given.
        """
        self._run, self._max_batch_size, self._fit = run, max_batch_size, fit
        self._executor, self._call_soon = executor, call_soon
        self._joining = joining or Alike()
        self._may_run_in_loop = may_run_in_loop
        self._clock, self._busy_clock = clock, busy_clock or clock
        self._work = Fits()
        """What a pass takes by `busy_clock`."""
        self._lock = threading.Lock()
        self._queues: dict[Hashable, list[_Entry]] = {}
        self._numbers = count()
        self._is_busy = False
        """A pass runs, or the executor has been told to run one."""
        self.num_waiting = 0
        """Samples that wait for the model."""
        self.num_running = 0
        """Samples of the pass that runs."""
        self.counts = Counts()

    def submit(self, request: Request) -> None:
        """Let the request wait for the next pass, which begins at the latest with the next `flush`."""
        request.bucket = self._joining.bucket(_of(request))
        entry = (min(request.deadline_s, request.arrived_s + PATIENCE_S), next(self._numbers), request)
        with self._lock:
            heapq.heappush(self._queues.setdefault(request.bucket, []), entry)
            self.num_waiting += request.size
        self.counts.arrived(request.size)

    def cancel(self, request: Request) -> None:
        """Do not compute the request: answer it at once. One that is being computed is answered as ever."""
        with self._lock:
            if request.is_over or request.is_taken:
                return
            self._drop(request)
        self.counts.ended += 1
        _answer(request, Answer(None, Cancelled("nobody waits for it any more"), None))

    def flush(self) -> None:
        """Run what waits, unless the model runs: then that follows by itself."""
        with self._lock:
            if self._is_busy or not self.num_waiting:
                return
            self._is_busy = True
            is_short = self._is_short()
        if is_short:
            self._run_in_loop()
        else:
            self._executor.submit(self._run_in_thread)

    def _is_short(self) -> bool:
        """Whether the loop can run the next pass."""
        if not self._may_run_in_loop:
            return False
        bucket, queue = min(self._queues.items(), key=lambda item: item[1][0])
        size = sum(request.size for _, _, request in queue[: self._max_batch_size])
        size = min(size, max(self._max_batch_size, queue[0][2].size))
        seconds = self._work.seconds(bucket, size) or self._fit.seconds(bucket, size)
        return seconds is not None and seconds < LOOP_S

    def _run_in_loop(self) -> None:
        """One pass; what then waits is run after what the loop has to do meanwhile."""
        requests, late = self._take()
        answers = self._answers(requests)
        with self._lock:
            self._is_busy, self.num_running = False, 0
            has_more = self.num_waiting > 0
        if has_more:
            self._call_soon(self.flush)
        self._tell(late, requests, answers)

    def _run_in_thread(self, taken: tuple[list[Request], list[Request]] | None = None) -> None:
        """One pass; the thread takes the next by itself, for the loop may be slow to say so.

        And before the loop learns of the answers: while that hands them out, it has the interpreter.
        """
        requests, late = taken or self._take()
        answers = self._answers(requests)
        following = self._take() if requests else ([], [])
        if requests or late:
            self._call_soon(lambda: self._tell(late, requests, answers))
        if any(following):
            self._executor.submit(lambda: self._run_in_thread(following))

    def _take(self) -> tuple[list[Request], list[Request]]:
        """The requests of the next pass, and those whose deadline has passed; of none, the model is free."""
        with self._lock:
            now_s = self._clock()
            late: list[Request] = []
            requests: list[Request] = []
            while self._queues and not requests:
                bucket, queue = min(self._queues.items(), key=lambda item: item[1][0])
                requests = self._taken(bucket, queue, now_s, late)
                if not queue:
                    del self._queues[bucket]
            self.num_running = sum(request.size for request in requests)
            self.num_waiting -= self.num_running
            self._is_busy = bool(requests)
        return requests, late

    def _taken(
        self, bucket: Hashable, queue: list[_Entry], now_s: float, late: list[Request]
    ) -> list[Request]:
        """The most urgent ones of a queue, which loses them; adds to `late`."""
        found: list[Request] = []
        line = self._fit.line(bucket) or _NOTHING
        size, earliest_s = 0, NEVER
        while queue:
            request = queue[0][2]
            if request.is_over:
                heapq.heappop(queue)
                continue
            if request.deadline_s <= now_s:
                heapq.heappop(queue)
                self._drop(request)
                late.append(request)
                continue
            together = size + request.size
            end_s = now_s + line.fixed_s + line.per_sample_s * together
            if found and (together > self._max_batch_size or end_s > earliest_s):
                break
            heapq.heappop(queue)
            request.taken_s, request.is_taken = now_s, True
            found.append(request)
            size = together
            if end_s <= request.deadline_s < earliest_s:  # else it is lost: nobody need hurry for it
                earliest_s = request.deadline_s
        return found

    def _drop(self, request: Request) -> None:
        """With the lock: it waits no more, and its values are free."""
        self.num_waiting -= request.size
        request.is_over, request.inputs = True, None

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each. Where a pass of several fails each runs alone: one may have broken it."""
        try:
            return self._computed(requests)
        except BaseException as error:  # also what would only end the thread
            if len(requests) == 1:
                return [Answer(None, _plain(error), None)]
        return [answer for request in requests for answer in self._answers([request])]

    def _computed(self, requests: Sequence[Request]) -> list[Answer]:
        if not requests:
            return []
        inputs = [_of(request) for request in requests]
        joined = self._joining.join(inputs)
        size = sum(request.size for request in requests)
        start_s, busy_s = self._clock(), self._busy_clock()
        outputs = self._run(joined)
        busy_s, infer_s = self._busy_clock() - busy_s, self._clock() - start_s
        self._fit.observe(requests[0].bucket, size, infer_s)
        self._work.observe(requests[0].bucket, size, busy_s)
        return [
            Answer(
                part,
                None,
                Timings(
                    request.taken_s - request.arrived_s, max(0.0, start_s - request.taken_s), infer_s, size
                ),
            )
            for request, part in zip(requests, self._joining.split(outputs, inputs), strict=True)
        ]

    def _tell(self, late: Sequence[Request], requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        now_s = self._clock()
        for request in late:
            self.counts.late(now_s, now_s - request.arrived_s)
            _answer(request, Answer(None, Expired("its deadline passed before it was computed"), None))
        for request, answer in zip(requests, answers, strict=True):
            waited_s = request.taken_s - request.arrived_s
            self.counts.computed(request.size, now_s, now_s - request.arrived_s, waited_s)
            request.is_over, request.inputs = True, None
            _answer(request, answer)


def _of(request: Request) -> Inputs:
    assert request.inputs is not None  # it is not over
    return request.inputs


def _plain(error: BaseException) -> Exception:
    """What can be handed on: a model that calls sys.exit() shall not end who waits for it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"the model raised {type(error).__name__}: {error}")


def _answer(request: Request, answer: Answer) -> None:
    """Call back; what is wrong with one connection is no matter of the other requests."""
    try:
        request.on_answer(answer)
    except Exception:
        _log.exception("an answer could not be handed on")
