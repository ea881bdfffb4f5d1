"""Texts that are made side by side are those that `generate` makes one after the other."""

import threading
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from eagleray import models
from eagleray.data import ByteTokenizer
from eagleray.errors import EaglerayError
from eagleray.inference.continuous import ContinuousEngine
from eagleray.inference.generation import generate
from eagleray.inference.waiting import QueueClosed, QueueFull
from eagleray.protocol.generation import GenerationRequest
from eagleray.specs import Signature
from eagleray.specs.model import GptModel

TOKENIZER = ByteTokenizer()
CONTEXT = 12


@pytest.fixture(autouse=True)
def one_thread():
    """Of torch's: on a busy machine two wait for each other at every small product."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def gpt(context=CONTEXT, **changes):
    torch.manual_seed(0)
    spec = GptModel(**{"kind": "gpt", "width": 24, "num_heads": 3, "num_layers": 2} | changes)
    signature = Signature(
        input_kind="text",
        input_shape=(context,),
        target_kind="tokens",
        target_shape=(context,),
        vocabulary_size=TOKENIZER.vocabulary_size,
        tokenizer="bytes",
    )
    return models.build(spec, signature).eval()


class Heard:
    """What came of one request."""

    def __init__(self, engine, request, **options):
        self.pieces, self.end = [], None
        self.handle = engine.submit(request, self.pieces.append, self._on_end, **options)

    def _on_end(self, end):
        assert self.end is None
        self.end = end

    @property
    def chunks(self):
        return [*self.pieces, self.end]


def engine_of(module=None, context=CONTEXT, **options):
    return ContinuousEngine(
        module or gpt(context), TOKENIZER, context, **{"slots": 4, "max_waiting": 100} | options
    )


def run(engine, most=10_000):
    steps = 1
    while engine.step():
        steps += 1
        assert steps < most
    return steps


PROMPTS = [
    "def ",
    "x",
    "import os, sys and more than fits",
    "def f(x):",
    "é€",
    "class A:\n",
    "a" * 12,
    "b" * 13,
]


def requests(num=24, max_tokens=30):
    """All kinds of them."""
    return [
        GenerationRequest(
            PROMPTS[number % len(PROMPTS)],
            max_tokens=1 + (7 * number) % max_tokens,
            temperature=(0, 0.8, 1.3)[number % 3],
            top_p=(1.0, 0.9, 0.5, 0.0)[number % 4],
            seed=number,
            stop=((), ("a", "ö"), ("\n\n",))[number % 5 % 3],
        )
        for number in range(num)
    ]


@cache
def made_alone(context):
    return [list(generate(gpt(context), TOKENIZER, request, context=context)) for request in requests()]


@pytest.mark.parametrize("context", [1, 2, 3, CONTEXT])
@pytest.mark.parametrize(("slots", "prefill_tokens"), [(1, 1), (3, 2), (5, 8), (24, 64)])
def test_each_text_is_the_one_that_it_would_be_alone(context, slots, prefill_tokens):
    engine = engine_of(gpt(context), context, slots=slots, prefill_tokens=prefill_tokens)
    heard = [Heard(engine, request) for request in requests()]
    run(engine)
    assert [one.chunks for one in heard] == made_alone(context)


def test_tokens_are_told_to_those_who_ask_as_if_they_were_alone():
    asked = [replace(request, with_tokens=number % 2 == 0) for number, request in enumerate(requests(8))]
    engine = engine_of(slots=3)
    heard = [Heard(engine, request) for request in asked]
    run(engine)
    for one, request, plain in zip(heard, asked, made_alone(CONTEXT), strict=False):
        assert [replace(chunk, tokens=()) for chunk in one.chunks] == plain
        told = [token for chunk in one.chunks for token in chunk.tokens]
        assert len(told) == (one.end.completion_tokens if request.with_tokens else 0)
        alone = generate(gpt(), TOKENIZER, request, context=CONTEXT)
        expected = [token for chunk in alone for token in chunk.tokens]
        assert [token[:2] for token in told] == [token[:2] for token in expected]
        assert [token[2] for token in told] == pytest.approx([token[2] for token in expected], abs=1e-5)


def test_a_context_below_the_models_own_is_kept_to():
    module, request = gpt(CONTEXT), GenerationRequest("some text", max_tokens=20, temperature=0)
    engine = ContinuousEngine(module, TOKENIZER, 5, slots=2, max_waiting=1)
    one = Heard(engine, request)
    run(engine)
    assert one.chunks == list(generate(module, TOKENIZER, request, context=5))


def test_without_a_seed_each_text_is_another():
    engine = engine_of()
    heard = [Heard(engine, GenerationRequest("x", max_tokens=20, temperature=1)) for _ in range(3)]
    run(engine)
    assert len({"".join(chunk.text for chunk in one.chunks) for one in heard}) == 3


class Own(nn.Module):
    """A model without slots and without a cache."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, tokens):
        return self.module(tokens)


def test_a_model_without_slots_makes_its_texts_in_turns():
    module = Own(gpt()).train()
    engine = engine_of(module, slots=3)
    heard = [Heard(engine, request) for request in requests(9)]
    engine.step()
    assert [len(one.pieces) + (one.end is not None) for one in heard[:4]] == [1, 1, 1, 0]
    run(engine)
    for request, one in zip(requests(9), heard, strict=True):
        assert one.chunks == list(generate(module, TOKENIZER, request, context=CONTEXT)), request


def endless(prompt="def ", **changes):
    return GenerationRequest(prompt, **{"max_tokens": 500, "temperature": 0} | changes)


def num_made(one):
    return max([chunk.completion_tokens for chunk in one.pieces], default=0)


def test_a_long_prompt_does_not_stop_the_others():
    context = 64
    engine = engine_of(context=context, prefill_tokens=4, slots=3)
    first = Heard(engine, GenerationRequest("x", max_tokens=60, temperature=1, seed=0))
    engine.step()
    second, third = (Heard(engine, endless(letter * 40, temperature=1)) for letter in "ab")
    made = engine.counts.made
    for step in range(1, 16):
        engine.step()
        assert engine.counts.made == made + step
        assert engine.counts.computed <= 1 + 5 * step
    assert second.pieces == third.pieces == []
    for _ in range(8):
        engine.step()
    assert engine.counts.made > made + 23  # both were read, in turns, and have tokens too
    assert first.pieces


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = engine_of(context=256, prefill_tokens=8)
    Heard(engine, endless("a" * 250))
    short = Heard(engine, GenerationRequest("def f", max_tokens=1))
    engine.step()
    engine.step()
    assert short.end is not None


def test_a_prompt_that_begins_like_another_is_not_computed_twice():
    module = gpt(64)
    engine = engine_of(module, 64, slots=2)
    prompt = "a rather long beginning, "
    Heard(engine, GenerationRequest(prompt + "one", max_tokens=3, temperature=0))
    run(engine)
    before = engine.counts.computed
    requests = [GenerationRequest(prompt + end, max_tokens=3, temperature=0) for end in ("two", "and three")]
    heard = [Heard(engine, request) for request in requests]
    run(engine)
    assert engine.counts.reused == 2 * len(prompt)
    assert engine.counts.computed - before == len("two") + len("and three") + 2 * 2
    for request, one in zip(requests, heard, strict=True):
        assert one.chunks == list(generate(module, TOKENIZER, request, context=64))


def test_the_same_prompt_again_computes_one_token_of_it():
    engine = engine_of(slots=1)
    for _ in range(2):
        Heard(engine, GenerationRequest("def f", max_tokens=1))
        run(engine)
    assert (engine.counts.reused, engine.counts.computed) == (4, 6)


def test_a_beginning_stays_while_other_slots_are_free():
    engine = engine_of(slots=3, context=32)
    for prompt in ("kept for long", "other", "thing", "more", "and", "kept for longer"):
        Heard(engine, GenerationRequest(prompt, max_tokens=1))
        run(engine)
        Heard(engine, GenerationRequest("kept for l", max_tokens=1))
        reused = engine.counts.reused
        run(engine)
        assert engine.counts.reused - reused == 9


def test_a_cancelled_text_frees_its_slot_and_is_heard_of_no_more():
    engine = engine_of(slots=1)
    first, second = (
        Heard(engine, endless()),
        Heard(engine, GenerationRequest("x", max_tokens=3, temperature=0)),
    )
    engine.step()
    first.handle.cancel()
    num_pieces = len(first.pieces)
    assert run(engine) <= 4
    assert (len(first.pieces), first.end) == (num_pieces, None)
    assert second.end.completion_tokens == 3
    first.handle.cancel()


def test_a_cancelled_request_that_waits_makes_room():
    engine = engine_of(slots=1, max_waiting=1)
    Heard(engine, GenerationRequest("x", max_tokens=2))
    engine.step()
    waiting = Heard(engine, endless())
    with pytest.raises(QueueFull, match="1 requests for text wait already"):
        Heard(engine, endless())
    waiting.handle.cancel()
    assert engine.num_waiting == 0
    last = Heard(engine, GenerationRequest("x", max_tokens=2))
    run(engine)
    assert waiting.chunks == [None]
    assert last.end.completion_tokens == 2


def test_a_callback_may_cancel_and_submit():
    engine, more = engine_of(slots=2), []

    def on_piece(piece):
        other.handle.cancel()
        more.append(Heard(engine, GenerationRequest("x", max_tokens=1, temperature=0)))
        handle.cancel()

    handle = engine.submit(endless(), on_piece, lambda end: pytest.fail("was cancelled"))
    other = Heard(engine, endless())
    run(engine, most=20)
    assert other.chunks == [None]
    assert [one.end.finish_reason for one in more] == ["length"]


def test_a_callback_that_fails_ends_its_own_text_only(caplog):
    engine = engine_of()

    def on_piece(piece):
        raise ZeroDivisionError

    engine.submit(endless(), on_piece, lambda end: pytest.fail("ended"))
    request = GenerationRequest("x", max_tokens=9, temperature=0)
    one = Heard(engine, request)
    run(engine, most=20)
    assert one.end.completion_tokens == 9
    assert "a callback of a text failed" in caplog.text


def test_slots_go_to_keys_in_turns_by_their_tokens():
    engine, order = engine_of(slots=1), []
    for key, num, max_tokens in (("greedy", 4, 19), ("small", 8, 4)):
        request = GenerationRequest("x", max_tokens=max_tokens)
        for _ in range(num):
            engine.submit(request, lambda _: None, lambda _, key=key: order.append(key), key=key)
    run(engine)
    assert order[:7] == ["greedy", *["small"] * 4, "greedy", "small"]
    assert Counter(order) == {"greedy": 4, "small": 8}


def test_a_key_with_long_texts_does_not_keep_all_slots():
    module = gpt()
    engine = engine_of(module, slots=2, turn_tokens=20)
    long = [Heard(engine, request, key="long") for request in (endless(), endless("x"), endless("é"))]
    for _ in range(10):
        engine.step()
    short = Heard(engine, GenerationRequest("y", max_tokens=5, temperature=0), key="short")
    for _ in range(16):
        engine.step()
    assert short.end is not None
    assert [bool(one.pieces) for one in long] == [True, True, False]
    run(engine)
    assert [one.chunks for one in long] == [
        list(generate(module, TOKENIZER, endless(prompt), context=CONTEXT)) for prompt in ("def ", "x", "é")
    ]


@pytest.mark.parametrize("turn_tokens", [1, 4])
@pytest.mark.parametrize("has_slots", [True, False])
def test_texts_that_take_turns_are_those_they_would_be_alone(turn_tokens, has_slots):
    module = gpt() if has_slots else Own(gpt())
    engine = engine_of(module, slots=3, prefill_tokens=3, turn_tokens=turn_tokens)
    heard = [Heard(engine, one, key=str(number % 5)) for number, one in enumerate(requests())]
    run(engine)
    expected = made_alone(CONTEXT)
    if not has_slots:
        expected = [list(generate(module, TOKENIZER, one, context=CONTEXT)) for one in requests()]
    assert [one.chunks for one in heard] == expected


def test_a_text_that_is_cancelled_between_its_turns_is_heard_of_no_more():
    engine = engine_of(slots=1, turn_tokens=2)
    one, other = Heard(engine, endless(), key="a"), Heard(engine, endless(), key="b")
    while not other.pieces:
        engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    one.handle.cancel()
    assert engine.num_waiting == 0
    num_pieces = len(one.pieces)
    run(engine)
    assert (len(one.pieces), one.end) == (num_pieces, None)
    assert other.end.completion_tokens == 500


def test_tokens_that_a_stop_string_saved_are_not_charged():
    module = gpt()
    stop = next(c.text for c in generate(module, TOKENIZER, endless(), context=CONTEXT) if c.text)
    engine, order = engine_of(module, slots=1), []
    for key, request in (("brief", endless(stop=(stop,))), ("other", endless(max_tokens=20))):
        for _ in range(3):
            engine.submit(request, lambda _: None, lambda _, key=key: order.append(key), key=key)
    run(engine)
    assert order[:4] == ["brief", "other", "brief", "brief"]


def test_closing_ends_all_and_takes_no_more():
    engine = engine_of(slots=1)
    heard = [Heard(engine, endless()) for _ in range(3)]
    heard[1].handle.cancel()
    engine.step()
    engine.close()
    engine.close()
    assert [type(one.end) for one in heard] == [QueueClosed, type(None), QueueClosed]
    assert not engine.step()
    with pytest.raises(QueueClosed, match="takes no more requests"):
        Heard(engine, endless())


class Poisoned(nn.Embedding):
    """The byte `!` has no finite embedding."""

    def forward(self, tokens):
        return super().forward(tokens).masked_fill((tokens == ord("!"))[..., None], torch.nan)


def test_logits_that_are_not_finite_end_one_text_and_leave_nothing_in_its_slot():
    module = gpt()
    request = GenerationRequest("def f", max_tokens=8, temperature=0)
    expected = list(generate(module, TOKENIZER, request, context=CONTEXT))
    poisoned = Poisoned(*module.tokens.weight.shape)
    poisoned.weight = module.tokens.weight
    module.tokens = poisoned
    engine = engine_of(module, slots=2)
    bad, good = Heard(engine, endless("no!", temperature=1)), Heard(engine, request)
    run(engine)
    again = [Heard(engine, request) for _ in range(2)]
    run(engine)
    assert isinstance(bad.end, EaglerayError)
    assert "largest logit is nan" in str(bad.end)
    assert good.chunks == again[0].chunks == again[1].chunks == expected


class Failing(nn.Module):
    """Fails at the first text of several, then no more."""

    def __init__(self, module, has_slots):
        super().__init__()
        self.module = module
        self.fails = True
        if has_slots:
            self.new_slots = module.new_slots
            self.extend = lambda parts, cache: self._tried(module.extend, parts, cache)

    def forward(self, tokens):
        return self._tried(self.module, tokens)

    def _tried(self, call, *given):
        logits = call(*given)
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return logits


@pytest.mark.parametrize("has_slots", [True, False])
def test_a_model_that_fails_ends_what_ran_and_the_next_is_tried(has_slots):
    module = Failing(gpt(), has_slots)
    engine = engine_of(module, slots=1)
    request = GenerationRequest("def f", max_tokens=8, temperature=0)
    bad, good = Heard(engine, request), Heard(engine, request)
    run(engine)
    assert str(bad.end) == "the model failed at the text: RuntimeError: out of memory"
    assert good.chunks == list(generate(module.module, TOKENIZER, request, context=CONTEXT))


def test_requests_come_and_go_from_other_threads():
    engine, heard = engine_of(slots=3), []

    def submit(number):
        for request in requests(12):
            heard.append((request, Heard(engine, request, key=str(number))))
            Heard(engine, endless()).handle.cancel()

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while engine.step() or any(thread.is_alive() for thread in threads):
        pass
    assert len(heard) == 36
    expected = dict(zip(requests(), made_alone(CONTEXT), strict=True))
    for request, one in heard:
        assert one.chunks == expected[request]
