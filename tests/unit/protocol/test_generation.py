import pickle

import pytest

from eagleray.errors import InputError
from eagleray.protocol.generation import MAX_TOKENS, GenerationRequest


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": None}, "prompt is NoneType; give a string"),
        ({"prompt": b"x"}, "prompt is bytes; give a string"),
        ({"prompt": "ab\ud800"}, "prompt has half a surrogate pair at character 2"),
        ({"max_tokens": 0}, f"max_tokens is 0; give a number from 1 to {MAX_TOKENS}"),
        ({"max_tokens": MAX_TOKENS + 1}, "max_tokens is 32769"),
        ({"max_tokens": 1.0}, "max_tokens is 1.0; give a whole number"),
        ({"max_tokens": True}, "max_tokens is True; give a whole number"),
        ({"temperature": -0.1}, "temperature is -0.1; give a number from 0 to 2"),
        ({"temperature": 2.1}, "temperature is 2.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "1"}, "temperature is '1'; give a number"),
        ({"top_p": 1.01}, "top_p is 1.01; give a number from 0 to 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 0.5}, "seed is 0.5; give a whole number"),
        ({"stop": "\n"}, "stop is '\\n'; give a tuple of strings"),
        ({"stop": ("a", "")}, r"stop[1] has 0 characters; give 1 to 256"),
        ({"stop": ("a" * 257,)}, r"stop[0] has 257 characters"),
        ({"stop": (3,)}, "stop[0] is int; give a string"),
        ({"stop": ("\udfff",)}, "stop[0] has half a surrogate pair"),
        ({"stop": ("a",) * 17}, "stop has 17 strings; give at most 16"),
    ],
)
def test_a_value_out_of_range_is_named(changes, problem):
    with pytest.raises(InputError) as caught:
        GenerationRequest(**{"prompt": "x"} | changes)
    assert problem in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))  # as it crosses from a replica to the ingress
    assert (str(copy), copy.field) == (str(caught.value), next(iter(changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0, "top_p": 0, "max_tokens": 1},
        {"temperature": 2, "top_p": 1, "max_tokens": MAX_TOKENS},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1, "stop": ("a" * 256,) * 16},
        {"prompt": "\ufffd𝄞\0"},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(changes):
    assert GenerationRequest(**{"prompt": "x"} | changes).prompt
