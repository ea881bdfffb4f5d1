"""What a key may use: its ranges, and its form as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eagleray.errors import InputError
from eagleray.protocol.key_terms import KeyTerms


@pytest.mark.parametrize(
    "terms",
    [
        KeyTerms(),
        KeyTerms(models=("digits", "gpt-*")),
        KeyTerms(requests_per_s=0.5, burst=3, weight=100, priority="shadow", expires_at=1e9),
        KeyTerms(tokens_per_s=1, bytes_per_s=1e9, concurrency=1),
    ],
)
def test_json_and_back(terms: KeyTerms) -> None:
    assert KeyTerms.from_json(json.loads(json.dumps(terms.to_json()))) == terms


def test_only_what_was_asked_for_is_in_the_json() -> None:
    assert KeyTerms().to_json() == {}
    assert KeyTerms(weight=2, models=("a",)).to_json() == {"weight": 2, "models": ["a"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "terms: expected an object with some of: models, requests_per_s"),
        ({"rate": 1}, "terms: unknown key 'rate'; known: models"),
        ({"models": "digits"}, "terms: models: expected a list of names"),
        ({"models": ["*"]}, "models: '\\*' is none"),
        ({"models": [7]}, "models: '7' is none"),
        ({"models": ["../x"]}, "models: '../x' is none"),
        ({"requests_per_s": 0}, "requests_per_s: expected a number above 0, not 0"),
        ({"requests_per_s": True}, "requests_per_s: expected a number above 0, not True"),
        ({"tokens_per_s": float("nan")}, "tokens_per_s: expected a number above 0, not nan"),
        ({"bytes_per_s": float("inf")}, "bytes_per_s: expected a number above 0, not inf"),
        ({"bytes_per_s": 10**400}, "bytes_per_s: expected a number above 0, not 1000"),
        ({"bytes_per_s": "1"}, "bytes_per_s: expected a number"),
        ({"concurrency": 0}, "concurrency: expected a whole number from 1 to 1000000, not 0"),
        ({"concurrency": 1.5}, "concurrency: expected a whole number"),
        ({"weight": 101}, "weight: expected a whole number from 1 to 100, not 101"),
        ({"weight": None}, "weight: expected a whole number"),
        ({"priority": "high"}, "priority 'high' is not known; choose interactive, batch, shadow"),
        ({"burst": 5}, "burst: expected 1 or more, beside requests_per_s"),
        ({"burst": 0.5, "requests_per_s": 1}, "burst: expected 1 or more"),
        ({"expires_at": -1}, "expires_at: expected a number above 0"),
    ],
)
def test_what_cannot_be(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KeyTerms.from_json(values)
