"""Many texts from one model at once: continuous batching, iteration by iteration.

    submit (any thread) -> FairQueue -> step (the owner's thread): admit, one pass, deliver -> callbacks

Each iteration lets waiting requests into free slots, computes one token for every text that runs in one pass
of the model, and frees the slots of those that ended. A text is the one that `generate` makes alone: it
depends on its request only, not on the others (but where two logits differ by no more than float rounding).

Source: Yu et al. 2022 (Orca), section 3.1, for iteration-level scheduling; Agrawal et al. 2023 (SARATHI),
section 4, for prompts in chunks beside the other texts' tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from torch import nn

from eagleray.data import ByteTokenizer
from eagleray.errors import EaglerayError
from eagleray.inference.lanes import Counts, Lanes, News, SingleLanes, SlottedLanes, Stream
from eagleray.inference.waiting import FairQueue, QueueClosed
from eagleray.models.sampling import HasSlots
from eagleray.protocol.generation import GenerationChunk, GenerationRequest

_log = logging.getLogger(__name__)


class Handle:
    """A submitted request."""

    def __init__(self, stream: Stream, waiting: FairQueue[Stream]):
        self._stream = stream
        self._waiting = waiting

    def cancel(self) -> None:
        """Make no more of it; from any thread, also after its end.

        Neither callback is called any more, but for one that another thread has begun to call. A place in the
        queue is free at once, a slot from the next iteration on.
        """
        self._stream.is_cancelled = True
        self._waiting.remove(self._stream.key, self._stream)


class ContinuousEngine:
    """Makes the texts of many requests side by side, `slots` of them at a time.

    The module is in evaluation mode from now on. A model without slots (`HasSlots`) makes its texts one token
    after the other, in turns.

    Threads: `submit`, `Handle.cancel` and the numbers may be called from any. `step` and `close` belong to
    one thread, the owner's, which is where the callbacks run: they should hand on and return. A callback may
    submit and cancel, but not step or close.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: ByteTokenizer,
        context: int,
        *,
        slots: int,
        max_waiting: int,
        prefill_tokens: int = 64,
        turn_tokens: int = 256,
    ):
        """An engine without requests.

        Args:
            module: A next-token model. Nothing else may use it during a `step`.
            tokenizer: Of its vocabulary.
            context: Tokens that the model sees.
            slots: Texts at a time; the memory of all is taken at once.
            max_waiting: Requests that may wait for a slot; `submit` refuses more.
            prefill_tokens: Tokens of prompts in one iteration, besides one of each text that runs. More
                brings first tokens sooner and the next ones of the others later.
            turn_tokens: Tokens after which a text leaves its slot to a key that waits and has fewer slots
                than its own. It goes on later, and has to read its window again: at most `context` tokens.
        """
        self._context = context
        self._tokenizer = tokenizer
        self._turn_tokens = turn_tokens
        module.eval()
        self._waiting: FairQueue[Stream] = FairQueue(max_waiting)
        self._lanes: Lanes
        if isinstance(module, HasSlots):
            self._lanes = SlottedLanes(module, context, slots, prefill_tokens)
        else:
            self._lanes = SingleLanes(module, tokenizer, context, slots)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with a slot."""
        return self._lanes.num_running

    @property
    def counts(self) -> Counts:
        """Tokens so far."""
        return self._lanes.counts

    def submit(
        self,
        request: GenerationRequest,
        on_piece: Callable[[GenerationChunk], None],
        on_end: Callable[[News], None],
        *,
        key: str = "",
    ) -> Handle:
        """Let the request wait for a slot; nothing is computed before the next `step`.

        Args:
            request: What to complete.
            on_piece: Called for each piece but the last.
            on_end: Called once, with the last piece (which has the `finish_reason`) or with what went wrong.
            key: Whose request it is. Slots go to keys in turns, by the tokens they were given.

        Raises: QueueFull if `max_waiting` requests wait; QueueClosed after `close`.
        """
        stream = Stream.of(request, self._tokenizer, self._context, key=key, on_piece=on_piece, on_end=on_end)
        self._waiting.put(key, stream.num_due, stream)
        return Handle(stream, self._waiting)

    def step(self) -> bool:
        """One iteration; whether there is more to do. If not, call again after the next `submit`."""
        for stream in self._lanes.streams:
            if stream.is_cancelled:
                self._lanes.stop(stream)
                self._settle(stream)
        self._admit()
        for stream, news in self._lanes.advance():
            self._deliver(stream, news)
        return self.num_running + self.num_waiting > 0

    def close(self) -> None:
        """End all requests, those that wait and those that run, with QueueClosed; take no more."""
        running = self._lanes.streams
        for stream in running:
            self._lanes.stop(stream)
        for stream in (*running, *self._waiting.close()):
            self._deliver(stream, QueueClosed("the model was shut down before the text was complete"))

    def _admit(self) -> None:
        while self._lanes.num_free and (stream := self._waiting.take()) is not None:
            self._start(stream)
        leaving = self._leaving()
        if leaving is not None and (stream := self._waiting.take()) is not None:
            self._lanes.pause(leaving)
            self._settle(leaving)
            self._waiting.put_back(leaving.key, leaving.num_due, leaving)
            self._start(stream)

    def _leaving(self) -> Stream | None:
        """The text that is to leave its slot to the key that is next, if that has fewer slots than others."""
        key = self._waiting.next_key
        if key is None or self._lanes.num_free:
            return None
        num_slots = Counter(stream.key for stream in self._lanes.streams)
        most = max(num_slots.values())
        if num_slots[key] == most:
            return None
        had_turn = (
            stream
            for stream in self._lanes.streams
            if num_slots[stream.key] == most and stream.num_in_turn >= self._turn_tokens
        )
        return max(had_turn, key=lambda stream: stream.num_in_turn, default=None)

    def _start(self, stream: Stream) -> None:
        if stream.is_cancelled:
            self._settle(stream)
        else:
            self._lanes.start(stream)

    def _deliver(self, stream: Stream, news: News) -> None:
        has_ended = isinstance(news, EaglerayError) or news.finish_reason is not None
        if has_ended:
            self._settle(stream)
        if stream.is_cancelled:
            return
        try:
            if isinstance(news, EaglerayError) or has_ended:
                stream.on_end(news)
            else:
                stream.on_piece(news)
        except Exception:  # of the caller's: the other texts are not to suffer
            _log.exception("a callback of a text failed; the text ends here")
            stream.is_cancelled = True

    def _settle(self, stream: Stream) -> None:
        self._waiting.give_back(stream.key, stream.num_unmade)
