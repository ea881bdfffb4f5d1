import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.errors import InputError
from eagleray.protocol.generation import GenerationRequest
from eagleray.protocol.openai import ChatMessage, plain_template, read_chat, read_completion

COMPLETION = {"model": "gpt", "prompt": "def "}
CHAT = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}


def body(values):
    return json.dumps(values).encode()


def completion(**changes):
    return read_completion(body(COMPLETION | changes))


def chat(*messages, **changes):
    return read_chat(body(CHAT | ({"messages": messages} if messages else {}) | changes))


def test_what_is_not_given_has_openai_s_default():
    found = completion()
    assert (found.model, found.is_chat, found.is_streamed) == ("gpt", False, False)
    assert found.generation == GenerationRequest("def ", max_tokens=128, temperature=1.0, top_p=1.0)
    names = ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "n", "tools")
    assert completion(**dict.fromkeys(names)) == found


def test_everything_given_is_taken():
    found = completion(
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        seed=-3,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        user="me",
    )
    assert found.generation == GenerationRequest("def ", 5, 0, 0.5, -3, ("a", "b"))
    assert (found.is_streamed, found.is_usage_wanted, found.is_usage_continuous) == (True, True, True)
    assert completion(stop="\n").generation.stop == ("\n",)
    assert completion(prompt=["only"]).generation.prompt == "only"


def test_the_plain_template_joins_the_messages_and_stops_before_the_user():
    prompt, stop = plain_template([ChatMessage("system", "Be kind."), ChatMessage("user", "hi\nthere")])
    assert prompt == "system: Be kind.\nuser: hi\nthere\nassistant: "
    assert stop == ("\nuser:",)


def test_a_conversation_becomes_a_prompt():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo €"}]
    found = chat({"role": "user", "content": parts}, stop="END", max_completion_tokens=7)
    assert found.is_chat
    assert found.generation.prompt == "user: Hello €\nassistant: "
    assert found.generation.stop == ("END", "\nuser:")
    assert found.generation.max_tokens == 7
    assert chat(max_tokens=7).generation.max_tokens == 7
    assert chat(max_tokens=7, max_completion_tokens=7).generation.max_tokens == 7


def test_a_model_s_own_template_is_used():
    found = read_chat(body(CHAT), lambda messages: (f"<{messages[0].content}>", ("<",)))
    assert (found.generation.prompt, found.generation.stop) == ("<hi>", ("<",))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 1, "best_of": 1, "echo": False, "suffix": "", "logprobs": None, "logit_bias": {}},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "tools": [], "tool_choice": "none"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "logprobs": False},
        {"user": "a", "metadata": {"b": "c"}, "store": True, "service_tier": "auto"},
    ],
)
def test_what_asks_for_nothing_is_allowed(changes):
    assert completion(**changes) == completion()
    assert chat(**changes) == chat()


BAD = [
    ({"model": None}, "model", "model is missing; give the name of a deployed model"),
    ({"model": ""}, "model", "model is ''"),
    ({"model": 3}, "model", "model is 3"),
    ({"model": "\ud800"}, "model", r"model is '\ud800'"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; give a number from 1"),
    ({"max_tokens": "9"}, "max_tokens", "max_tokens is '9'; give a whole number"),
    ({"temperature": 3}, "temperature", "temperature is 3; give a number from 0 to 2"),
    ({"temperature": [1] * 10_000}, "temperature", "temperature is [1, 1, 1, 1, 1, 1, ...]; give"),
    ({"seed": True}, "seed", "seed is True; give a whole number"),
    ({"stop": 3}, "stop", "stop is 3; give a string or a list"),
    ({"stop": ["a", 3]}, "stop", "stop[1] is int; give a string"),
    ({"stop": [""]}, "stop", "stop[0] has 0 characters"),
    ({"stop": ["a"] * 17}, "stop", "strings; give at most 16"),
    ({"stream": "yes"}, "stream", "stream is 'yes'; give true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only for stream = true"),
    ({"stream": True, "stream_options": 3}, "stream_options", "stream_options is an object"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options",
        "stream_options.include_usage is 1; give true or false",
    ),
    ({"n": 2}, "n", "n is not supported here; leave it out"),
    ({"n": True}, "n", "n is not supported"),
    ({"logprobs": 0}, "logprobs", "logprobs is not supported"),
    ({"echo": True}, "echo", "echo is not supported"),
    ({"tools": [{}]}, "tools", "tools is not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not supported"),
    ({"temprature": 1}, "temprature", "'temprature' is no field of this route; it takes max"),
    ({"\ud800": 1}, None, r"'\ud800' is no field of this route"),
]


@pytest.mark.parametrize("read", [completion, chat])
@pytest.mark.parametrize(("changes", "field", "problem"), BAD, ids=str)
def test_a_bad_field_is_named(read, changes, field, problem):
    with pytest.raises(InputError) as caught:
        read(**changes)
    assert problem in str(caught.value)
    assert caught.value.field == field
    str(caught.value).encode()
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (None, "prompt is missing; give one string"),
        ("", "prompt is empty"),
        ("\udc00", "prompt has half a surrogate pair at character 0"),
        (["a", "b"], "prompt is ['a', 'b']; give one string"),
        ([1, 2], "prompt is [1, 2]; give one string"),
        ({}, "prompt is {}"),
    ],
)
def test_a_prompt_is_one_text(prompt, problem):
    with pytest.raises(InputError) as caught:
        completion(prompt=prompt)
    assert problem in str(caught.value)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "messages is missing; give a list of at least one"),
        ([], "messages is []; give a list of at least one"),
        ("hi", "messages is 'hi'; give a list"),
        (["hi"], "messages[0] is 'hi'; give an object"),
        ([{"content": "x"}], "messages[0].role is missing; give system, developer, user or assistant"),
        ([{"role": "tool", "content": "x"}], "messages[0].role is 'tool'"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role is ['user']"),
        (
            [{"role": "user", "content": "x"}, {"role": "user"}],
            "messages[1].content is missing; give a string",
        ),
        ([{"role": "user", "content": "\ud800"}], "give a string of valid Unicode"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "or parts of type text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "or parts of type text"),
        ([{"role": "user", "content": ["x"]}], "or parts of type text"),
    ],
)
def test_messages_are_texts_of_known_roles(messages, problem):
    with pytest.raises(InputError) as caught:
        read_chat(body(CHAT | {"messages": messages}))
    assert problem in str(caught.value)
    assert caught.value.field == "messages"


def test_two_different_limits_are_refused():
    with pytest.raises(InputError, match="max_tokens and max_completion_tokens differ"):
        chat(max_tokens=3, max_completion_tokens=4)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'{"model": "\xff"}',
        b'{"model": "gpt", "prompt": "x", "temperature": NaN}',
        b'{"model": "gpt", "prompt": "x", "temperature": 1e999}',
        b'{"model": "gpt", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        *(b'{"model": "gpt", "prompt": ' + b"[" * deep + b"]" * deep + b"}" for deep in (100, 900, 100_000)),
    ],
)
def test_a_body_that_is_no_request_is_an_input_error(raw):
    for read in (read_completion, read_chat):
        with pytest.raises(InputError):
            read(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from([*COMPLETION, *CHAT, "stop", "stream", "stream_options", "max_tokens", "logprobs"])


@given(st.dictionaries(NAMES, JSON))
def test_any_json_is_a_request_or_an_input_error(changes):
    for read, base in ((read_completion, COMPLETION), (read_chat, CHAT)):
        try:
            read(
                body(base | {name: value for name, value in changes.items() if name in base or base is CHAT})
            )
        except InputError as error:
            str(error).encode()
