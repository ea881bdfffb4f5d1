"""Text from a trained next-token model: whole characters as they come, up to a stop string or a length."""

from __future__ import annotations

import codecs
from collections.abc import Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from eagleray import models
from eagleray.data import ByteTokenizer
from eagleray.models.sampling import log_probability
from eagleray.protocol.generation import FinishReason, GenerationChunk, GenerationRequest, Token


def generate(
    module: nn.Module, tokenizer: ByteTokenizer, request: GenerationRequest, *, context: int
) -> Generator[GenerationChunk]:
    """Yield the answer piece by piece; each token is computed when it is asked for.

    A piece is yielded as soon as its text is certain: bytes of an unfinished character and what may be the
    beginning of a stop string wait for the next tokens. A character that is still unfinished at the end is
    U+FFFD. Only the last `context` tokens of a longer prompt are seen; all are counted. Closing the iterator
    ends the work. Tokens that stand for no text (padding, mask) are never drawn.

    Raises: EaglerayError if the model's logits are not finite.
    """
    prompt = tokenizer.encode(request.prompt)
    sampler = sampler_of(request, tokenizer)
    log_probabilities: list[float] = []

    def tell(logits_V: Tensor, token: int) -> None:
        log_probabilities.append(log_probability(logits_V, token, sampler.num_choices))

    produced = models.complete(
        module,
        prompt[-context:].tolist(),
        num_tokens=request.max_tokens,
        sampler=sampler,
        on_chosen=tell if request.with_tokens else None,
        context=context,
    )
    pieces = Pieces(tokenizer, request, len(prompt))
    with closing(produced):
        for token in produced:
            told = log_probabilities.pop() if log_probabilities else None
            if (piece := pieces.feed(token, told)) is not None:
                yield piece
                if piece.finish_reason is not None:
                    return


class Pieces:
    """From the tokens of one answer to its pieces."""

    def __init__(self, tokenizer: ByteTokenizer, request: GenerationRequest, num_prompt: int):
        self.num_tokens = 0
        """Fed so far."""
        self._num_prompt = num_prompt
        self._max_tokens = request.max_tokens
        self._to_bytes = tokenizer.to_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopFilter(request.stop)
        self._tokens: list[Token] = []
        """Since the last piece, where they are to be told."""

    def feed(self, token: int, log_probability: float | None = None) -> GenerationChunk | None:
        """What is certain after one more token, the last piece at a stop string or at `max_tokens`.

        `log_probability`: where the tokens are to be told.
        """
        self.num_tokens += 1
        if log_probability is not None:
            text = self._to_bytes((token,)).decode(errors="replace")
            self._tokens.append(Token(token, text, log_probability))
        text = self._stop.feed(self._decoder.decode(self._to_bytes((token,))))
        if self._stop.is_stopped or self.num_tokens == self._max_tokens:
            text += self._stop.feed(self._decoder.decode(b"", final=True)) + self._stop.flush()
            return self._piece(text, "stop" if self._stop.is_stopped else "length")
        return self._piece(text, None) if text else None

    def _piece(self, text: str, reason: FinishReason | None) -> GenerationChunk:
        if not self._tokens:
            return GenerationChunk(text, reason, self._num_prompt, self.num_tokens)
        tokens, self._tokens = tuple(self._tokens), []
        return GenerationChunk(text, reason, self._num_prompt, self.num_tokens, tokens)


def sampler_of(request: GenerationRequest, tokenizer: ByteTokenizer) -> models.Sampler:
    """The sampler that the request asks for, with a generator of its own."""
    generator = torch.Generator()
    if request.seed is None:
        generator.seed()  # a new generator is not random: it has torch's default seed
    else:
        generator.manual_seed(request.seed)
    return models.Sampler(request.temperature, request.top_p, generator, num_choices=tokenizer.padding_token)


class StopFilter:
    """Passes a text on up to the first of the stop strings, wherever the pieces it comes in are cut.

    The first is the one that ends first in the text, and of several that end there the longest; so no whole
    stop string is ever passed on.
    """

    def __init__(self, stop: Sequence[str]):
        self.is_stopped = False
        """Whether a stop string has come; nothing is passed on any more."""
        self._stop = tuple(stop)
        self._held = ""

    def feed(self, text: str) -> str:
        """What is certain to stand before any stop string: of what was held back, and of `text`."""
        if not self._stop:
            return text
        if self.is_stopped:
            return ""
        self._held += text
        ends = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if ends:
            self.is_stopped = True
            passed, self._held = self._held[: min(ends)[1]], ""
            return passed
        return self._take(len(self._held) - self._num_doubtful())

    def flush(self) -> str:
        """What was held back; for the end of the text."""
        return self._take(len(self._held))

    def _take(self, num_characters: int) -> str:
        taken, self._held = self._held[:num_characters], self._held[num_characters:]
        return taken

    def _num_doubtful(self) -> int:
        """Characters at the end that a stop string begins with."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        endings = (self._held[-length:] for length in range(longest, 0, -1))
        return next((len(e) for e in endings if any(stop.startswith(e) for stop in self._stop)), 0)
