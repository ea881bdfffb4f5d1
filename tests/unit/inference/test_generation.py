import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eagleray.data import ByteTokenizer
from eagleray.inference.generation import StopFilter, generate
from eagleray.protocol.generation import GenerationRequest
from support.examples import examples

TOKENIZER = ByteTokenizer()
CONTEXT = 10_000


class Scripted(nn.Module):
    """Whatever the prompt of `num_prompt` tokens was, it goes on with these bytes."""

    def __init__(self, answer: bytes, num_prompt: int):
        super().__init__()
        self.answer = answer
        self.num_prompt = num_prompt
        self.lengths = []

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        logits = torch.zeros(1, tokens.shape[1], TOKENIZER.vocabulary_size)
        logits[0, -1, self.answer[tokens.shape[1] - self.num_prompt]] = 1
        return logits


def answer(script: bytes, *, stop=(), max_tokens=None, prompt="def "):
    module = Scripted(script, len(prompt.encode()))
    request = GenerationRequest(prompt, max_tokens=max_tokens or len(script), temperature=0, stop=tuple(stop))
    return list(generate(module, TOKENIZER, request, context=CONTEXT))


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def naive(text, stop):
    """The definition: the text up to the stop string that ends first (the longest of those)."""
    ends = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


def test_one_piece_for_each_character_and_the_reason_on_the_last():
    chunks = answer(b"f(x)")
    assert [(c.text, c.finish_reason, c.prompt_tokens, c.completion_tokens) for c in chunks] == [
        ("f", None, 4, 1),
        ("(", None, 4, 2),
        ("x", None, 4, 3),
        (")", "length", 4, 4),
    ]


def test_each_token_is_told_with_the_models_own_probability_of_it():
    script = "aé".encode()
    request = GenerationRequest("def ", max_tokens=3, temperature=0.5, top_p=0.01, with_tokens=True)
    chunks = list(generate(Scripted(script, 4), TOKENIZER, request, context=CONTEXT))
    assert [chunk.text for chunk in chunks] == ["a", "é"]
    first, *others = [token for chunk in chunks for token in chunk.tokens]
    assert [len(chunk.tokens) for chunk in chunks] == [1, 2], "an unfinished character's wait with it"
    assert (first.number, first.text) == (ord("a"), "a")
    assert [(token.number, token.text) for token in others] == [(0xC3, "\ufffd"), (0xA9, "\ufffd")]
    # one logit is 1, the others of those that can be drawn are 0
    expected = 1 - math.log(math.e + TOKENIZER.padding_token - 1)
    assert [token.log_probability for token in (first, *others)] == pytest.approx([expected] * 3)


def test_an_unfinished_character_is_held_back():
    chunks = answer("aé€𝄞.".encode())
    assert [chunk.text for chunk in chunks] == ["a", "é", "€", "𝄞", "."]
    assert [chunk.completion_tokens for chunk in chunks] == [1, 3, 6, 10, 11]


def test_a_character_that_stays_unfinished_is_replaced():
    chunks = answer("a€".encode()[:-1])
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("a", None), ("\ufffd", "length")]


def test_a_stop_string_ends_the_work_and_no_part_of_it_is_seen():
    module = Scripted(b"one\n\n\ntwo", 1)
    request = GenerationRequest("x", max_tokens=9, temperature=0, stop=("\n\n\n",))
    chunks = list(generate(module, TOKENIZER, request, context=CONTEXT))
    assert [chunk.text for chunk in chunks] == ["o", "n", "e", ""]
    assert (chunks[-1].finish_reason, chunks[-1].completion_tokens) == ("stop", 6)
    assert len(module.lengths) == 6


def test_a_beginning_of_a_stop_string_that_was_none_is_passed_on():
    assert [chunk.text for chunk in answer(b"a\n\nb\n", stop=["\n\n\n"])] == ["a", "\n\nb", "\n"]


def test_a_stop_string_that_is_complete_at_the_last_token_is_a_stop():
    chunks = answer("a€€".encode(), stop=["€€"])
    assert (text_of(chunks), chunks[-1].finish_reason) == ("a", "stop")


def test_closing_ends_the_work_and_leaves_the_module_as_it_was():
    module = Scripted(b"abcdef", 1).train()
    pieces = generate(module, TOKENIZER, GenerationRequest("x", max_tokens=6, temperature=0), context=9)
    assert [next(pieces).text, next(pieces).text] == ["a", "b"]
    pieces.close()
    assert len(module.lengths) == 2
    assert module.training


class Echo(nn.Module):
    """All tokens are equally likely, padding and mask likeliest of all; keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, tokens):
        self.given.append(tokens[0].tolist())
        logits = torch.zeros(1, tokens.shape[1], TOKENIZER.vocabulary_size)
        logits[..., TOKENIZER.padding_token :] = 9
        return logits


def test_of_a_long_prompt_the_end_is_seen_and_all_is_counted():
    module = Echo()
    chunks = list(generate(module, TOKENIZER, GenerationRequest("abcdefgh", max_tokens=1), context=3))
    assert module.given == [[102, 103, 104]]
    assert chunks[-1].prompt_tokens == 8


def test_tokens_that_stand_for_no_text_are_not_drawn():
    request = GenerationRequest("x", max_tokens=3, temperature=0)
    assert text_of(generate(Echo(), TOKENIZER, request, context=8)) == "\0\0\0"


def random_text(seed, **changes):
    request = GenerationRequest("x", max_tokens=50, **{"temperature": 1.0, "seed": seed} | changes)
    return text_of(generate(Echo(), TOKENIZER, request, context=8))


def test_a_seed_decides_and_none_is_a_fresh_one():
    assert random_text(7) == random_text(7)
    assert random_text(7) != random_text(-7)
    assert random_text(None) != random_text(None)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    random_text(7)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.binary(min_size=1, max_size=40))
def test_pieces_together_are_the_text_of_all_tokens(script):
    chunks = answer(script)
    assert text_of(chunks) == TOKENIZER.decode(script)
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.text for chunk in chunks[:-1])
    assert chunks[-1].completion_tokens == len(script)


FEW = st.text("ab\n€", min_size=1, max_size=4)


@given(st.text("ab\n€", min_size=1, max_size=40), st.lists(FEW, max_size=4))
@examples(200)
def test_a_stop_string_never_appears(text, stop):
    chunks = answer(text.encode(), stop=stop)
    expected, is_stopped = naive(text, stop)
    assert text_of(chunks) == expected
    assert chunks[-1].finish_reason == ("stop" if is_stopped else "length")
    assert not any(each in text_of(chunks) for each in stop)


@given(st.lists(st.text("ab", max_size=5)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
@examples(300)
def test_where_the_text_is_cut_makes_no_difference(pieces, stop):
    stops = StopFilter(stop)
    passed = [stops.feed(piece) for piece in pieces] + [stops.flush()]
    assert ("".join(passed), stops.is_stopped) == naive("".join(pieces), stop)
