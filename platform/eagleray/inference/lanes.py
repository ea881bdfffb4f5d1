"""Texts that grow side by side, one token each at a time: in the slots of one cache, or each by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from typing import Protocol

import torch
from torch import nn

from eagleray.data import ByteTokenizer
from eagleray.errors import EaglerayError
from eagleray.inference.generation import Pieces, generate, sampler_of
from eagleray.models.sampling import HasSlots, Sampler, choose_each, log_probability
from eagleray.models.slots import Part
from eagleray.protocol.generation import GenerationChunk, GenerationRequest

News = GenerationChunk | EaglerayError
"""A piece of a text, the last of which has a `finish_reason`, or why there will be no more."""


@dataclass(eq=False)
class Stream:
    """One request and what is to hear of it."""

    request: GenerationRequest
    key: str
    window: list[int]
    """The tokens that decide the next one, before it runs: of the prompt as many as the context takes."""
    pieces: Pieces
    sampler: Sampler
    on_piece: Callable[[GenerationChunk], None]
    on_end: Callable[[News], None]
    is_cancelled: bool = False
    rest: Generator[GenerationChunk] | None = None
    """What is left of it where it was paused, for a model without slots."""
    num_before: int = 0
    """Tokens made when it last started."""

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        tokenizer: ByteTokenizer,
        context: int,
        *,
        key: str,
        on_piece: Callable[[GenerationChunk], None],
        on_end: Callable[[News], None],
    ) -> Stream:
        """The stream of a request, nothing of it computed."""
        prompt = tokenizer.encode(request.prompt)
        pieces = Pieces(tokenizer, request, len(prompt))
        sampler = sampler_of(request, tokenizer)
        return cls(request, key, prompt[-context:].tolist(), pieces, sampler, on_piece, on_end)

    @property
    def num_unmade(self) -> int:
        """Tokens that it asked for and does not have."""
        return self.request.max_tokens - self.pieces.num_tokens

    @property
    def num_due(self) -> int:
        """What it costs at most from here: tokens to read and to make."""
        return len(self.window) + self.num_unmade

    @property
    def num_in_turn(self) -> int:
        """Tokens made since it last started."""
        return self.pieces.num_tokens - self.num_before


@dataclass
class Counts:
    """Tokens so far."""

    made: int = 0
    """Chosen, of all answers."""
    computed: int = 0
    """Given to the model: those of prompts, of answers, and again where a window hopped."""
    reused: int = 0
    """Of prompts, whose keys and values were there already."""


class Lanes(Protocol):
    """Where streams run; one thread moves them."""

    counts: Counts

    @property
    def num_running(self) -> int:
        """Streams that run."""
        ...

    @property
    def num_free(self) -> int:
        """Streams that may start."""
        ...

    @property
    def streams(self) -> Sequence[Stream]:
        """Those that run."""
        ...

    def start(self, stream: Stream) -> None:
        """Let it run, from where it was paused if it was; at least one lane must be free."""
        ...

    def stop(self, stream: Stream) -> None:
        """Free its lane at once."""
        ...

    def pause(self, stream: Stream) -> None:
        """Free its lane at once; it may start again."""
        ...

    def advance(self) -> Sequence[tuple[Stream, News]]:
        """One iteration; what it brought. A stream that ended with it has left its lane."""
        ...


@dataclass(eq=False)
class _Seat:
    """A stream in its slot."""

    stream: Stream
    slot: int
    window: list[int]
    """The tokens that decide the next one; the cache holds the first of them, and shall hold all."""


@dataclass
class SlottedLanes:
    """Each stream has a slot of one cache; an iteration is one pass, and a token at most for each.

    The window of a stream hops as `models.sampling.Cached` does, so its tokens are those of `generate`. What
    is to be computed anew then, or of a prompt, comes in chunks, of which a pass takes few: the other
    streams' tokens do not wait for it. Chunks are taken in turns.

    A slot keeps what it held when its stream has ended, until another needs the slot. A prompt that begins
    like what a slot holds, ended or not, does not compute that part again.
    """

    module: HasSlots
    context: int
    num_slots: int
    prefill_tokens: int
    """Tokens of prompts and hopped windows in one pass, besides the last token of each stream."""
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        with torch.inference_mode():
            self._cache = self.module.new_slots(self.num_slots)
        self._context = min(self.context, self._cache.capacity)
        self._seats: dict[Stream, _Seat] = {}
        self._filling: deque[_Seat] = deque()
        """Those with more than one token to compute, the next to have a chunk first."""
        self._free: list[int] = list(range(self.num_slots))
        """The one whose text was of use longest ago first."""
        self._windows: list[list[int]] = [[] for _ in self._free]
        """Of each slot, whose first tokens the cache holds."""

    @property
    def num_running(self) -> int:
        """Streams that run."""
        return len(self._seats)

    @property
    def num_free(self) -> int:
        """Slots without a stream."""
        return len(self._free)

    @property
    def streams(self) -> Sequence[Stream]:
        """Those that have a slot."""
        return list(self._seats)

    @torch.inference_mode()
    def start(self, stream: Stream) -> None:
        """Take a slot, and what any slot holds of the prompt."""
        window = stream.window[-self._context :]
        stream.num_before = stream.pieces.num_tokens
        # At least one token is computed: the next is chosen by its logits.
        shared = [min(self._num_shared(slot, window), len(window) - 1) for slot in range(self.num_slots)]
        source = max(range(self.num_slots), key=shared.__getitem__)
        num_reused = shared[source]
        if source in self._free and num_reused > 0:
            self._free.append(self._free.pop(self._free.index(source)))
        goes_on = source in self._free and num_reused == self._cache.num_held[source]
        slot = self._free.pop() if goes_on and num_reused > 0 else self._free.pop(0)
        self._cache.copy(source, slot, num_reused)
        self.counts.reused += num_reused
        seat = self._seats[stream] = _Seat(stream, slot, window)
        self._fill(seat, window)

    def stop(self, stream: Stream) -> None:
        """Free the slot, which keeps what it holds."""
        seat = self._seats.pop(stream)
        if seat in self._filling:
            self._filling.remove(seat)
        self._free.append(seat.slot)

    def pause(self, stream: Stream) -> None:
        """Free the slot. What it held is computed again, as far as another text needs the slot meanwhile."""
        stream.window = self._seats[stream].window
        self.stop(stream)

    @torch.inference_mode()
    def advance(self) -> Sequence[tuple[Stream, News]]:
        """One pass: a token of each stream whose window is computed, and chunks of the others."""
        parts = self._parts()
        if not parts:
            return []
        self.counts.computed += sum(len(part.tokens) for part in parts.values())
        try:
            logits_NV = self.module.extend(list(parts.values()), self._cache)
            held = self._cache.num_held
            ready = [at for at, seat in enumerate(parts) if held[seat.slot] == len(seat.window)]
            seats = [seat for seat in parts if held[seat.slot] == len(seat.window)]
            if len(seats) < len(parts):
                logits_NV = logits_NV[ready]
            chosen = choose_each(logits_NV, [seat.stream.sampler for seat in seats]) if seats else []
            told = _log_probabilities(logits_NV, seats, chosen)
        except Exception as error:
            return self._failed(error)
        self.counts.made += len(seats)
        news = [
            (seat.stream, self._go_on(seat, token, told.get(seat)))
            for seat, token in zip(seats, chosen, strict=True)
        ]
        return [(stream, piece) for stream, piece in news if piece is not None]

    def _fill(self, seat: _Seat, window: list[int]) -> None:
        seat.window = self._windows[seat.slot] = window
        if len(window) - self._cache.num_held[seat.slot] > 1:
            self._filling.append(seat)

    def _num_shared(self, slot: int, window: Sequence[int]) -> int:
        held = self._windows[slot][: self._cache.num_held[slot]]
        return sum(takewhile(bool, map(eq, held, window)))

    def _parts(self) -> dict[_Seat, Part]:
        held = self._cache.num_held
        parts = {
            seat: Part(seat.slot, seat.window[-1:])
            for seat in self._seats.values()
            if len(seat.window) - held[seat.slot] == 1
        }
        budget, served = self.prefill_tokens, list[_Seat]()
        while self._filling and budget > 0:
            seat = self._filling.popleft()
            missing = seat.window[held[seat.slot] :]
            # Halves, so that a long prompt does not have the whole pass while others wait.
            most = min(budget, max(2, self.prefill_tokens // 2)) if self._filling else budget
            parts[seat] = Part(seat.slot, missing[:most])
            budget -= len(parts[seat].tokens)
            if len(missing) - most > 1:
                served.append(seat)
        self._filling.extend(served)
        return parts

    def _go_on(self, seat: _Seat, token: int | EaglerayError, log_probability: float | None) -> News | None:
        if isinstance(token, EaglerayError):
            self._cache.wipe(seat.slot)
            self.stop(seat.stream)
            return token
        piece = seat.stream.pieces.feed(token, log_probability)
        if piece is not None and piece.finish_reason is not None:
            self.stop(seat.stream)
        elif len(seat.window) < self._context:
            seat.window.append(token)
        else:
            kept = [*seat.window, token][-max(1, self._context // 2) :]
            self._cache.num_held[seat.slot] = 0
            self._fill(seat, kept)
        return piece

    def _failed(self, error: Exception) -> Sequence[tuple[Stream, News]]:
        """All that run end: which of them it was that the model could not take is not known."""
        streams = self.streams
        for stream in streams:
            self.stop(stream)
        for slot in range(self.num_slots):
            self._cache.wipe(slot)
        return [(stream, _error_of(error)) for stream in streams]


def _log_probabilities(
    logits_NV: torch.Tensor, seats: Sequence[_Seat], chosen: Sequence[int | EaglerayError]
) -> dict[_Seat, float]:
    """Of the tokens of the streams that are to tell them."""
    return {
        seat: log_probability(logits_NV[row], token, seat.stream.sampler.num_choices)
        for row, (seat, token) in enumerate(zip(seats, chosen, strict=True))
        if seat.stream.request.with_tokens and not isinstance(token, EaglerayError)
    }


@dataclass
class SingleLanes:
    """Each stream is a `generate` of its own, for models without slots; an iteration is a piece of each."""

    module: nn.Module
    tokenizer: ByteTokenizer
    context: int
    num_slots: int
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._running: dict[Stream, Generator[GenerationChunk]] = {}

    @property
    def num_running(self) -> int:
        """Streams that run."""
        return len(self._running)

    @property
    def num_free(self) -> int:
        """Streams that may start."""
        return self.num_slots - len(self._running)

    @property
    def streams(self) -> Sequence[Stream]:
        """Those that run."""
        return list(self._running)

    def start(self, stream: Stream) -> None:
        """Begin its text; nothing is computed yet."""
        stream.num_before = stream.pieces.num_tokens
        self._running[stream] = stream.rest or generate(
            self.module, self.tokenizer, stream.request, context=self.context
        )

    def stop(self, stream: Stream) -> None:
        """End its text."""
        self._running.pop(stream).close()

    def pause(self, stream: Stream) -> None:
        """Keep what is left of its text."""
        stream.rest = self._running.pop(stream)

    def advance(self) -> Sequence[tuple[Stream, News]]:
        """The next piece of each."""
        return [(stream, self._next(stream, pieces)) for stream, pieces in list(self._running.items())]

    def _next(self, stream: Stream, pieces: Generator[GenerationChunk]) -> News:
        try:
            piece = next(pieces)
        except Exception as error:
            self.stop(stream)
            return _error_of(error)
        self.counts.made += piece.completion_tokens - stream.pieces.num_tokens
        stream.pieces.num_tokens = piece.completion_tokens
        if piece.finish_reason is not None:
            self.stop(stream)
        return piece


def _error_of(error: Exception) -> EaglerayError:
    if isinstance(error, EaglerayError):
        return error
    wrapped = EaglerayError(f"the model failed at the text: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
