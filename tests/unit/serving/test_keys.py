"""API keys: what is kept of them, what they open, what is said where they do not."""

from __future__ import annotations

import dataclasses
import json
import re
from hmac import compare_digest

import pytest

from eagleray.errors import AuthError, InputError
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.keys import _NO_KEY, KeyRing, WrongModel, WrongScope


def test_a_key_opens_what_it_is_for_until_it_is_revoked() -> None:
    ring, key, text = KeyRing().create("ci", ["infer"])
    assert re.fullmatch(r"er_[0-9a-f]{8}_[0-9a-f]{64}", text)
    assert ring.check(f"Bearer {text}", "infer") == key
    assert ring.check(f"bearer  {text} ", "infer") == key
    with pytest.raises(WrongScope, match="the API key 'ci' has the scope infer; this needs admin"):
        ring.check(f"Bearer {text}", "admin")
    with pytest.raises(AuthError, match="wrong or was revoked"):
        ring.revoke(key.id).check(f"Bearer {text}", "infer")
    assert ring.check(f"Bearer {text}", "infer") == key, "a ring is a value: the old one did not change"


def test_keys_differ() -> None:
    ring, texts = KeyRing(), set()
    for _ in range(20):
        ring, _, text = ring.create("same name", ["admin"])
        texts.add(text)
    assert (len(ring.keys), len(texts)) == (20, 20)


def test_the_text_is_kept_nowhere() -> None:
    ring, key, text = KeyRing().create("ci", ["admin", "infer", "infer"])
    kept = json.dumps(ring.to_json()) + repr(ring) + json.dumps(key.to_public())
    assert text.rpartition("_")[2] not in kept
    assert key.scopes == ("infer", "admin")
    assert "sha256" not in key.to_public()
    assert KeyRing.from_json(json.loads(json.dumps(ring.to_json()))) == ring


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Token {key}"],
)
def test_no_key(header: str) -> None:
    ring, _, text = KeyRing().create("ci", ["infer"])
    with pytest.raises(AuthError, match="this needs an API key: send `Authorization: Bearer er_…`"):
        ring.check(header.format(key=text), "infer")


def test_hashes_are_compared_in_constant_time_whether_the_key_is_known_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring, key, text = KeyRing().create("ci", ["infer"])
    compared: list[str] = []

    def compare(found: str, known: str) -> bool:
        compared.append(known)
        return compare_digest(found, known)

    monkeypatch.setattr("eagleray.serving.keys.hmac.compare_digest", compare)
    assert ring.find(text) == key
    assert ring.find(f"er_{'0' * 8}_{'0' * 64}") is None
    assert ring.find("sk-another") is None
    assert compared == [key.sha256, _NO_KEY, _NO_KEY]


@pytest.mark.parametrize("change", ["first", "last", "id", "longer", "empty secret", "case", "sk", "ä"])
def test_a_wrong_key(change: str) -> None:
    ring, _, text = KeyRing().create("ci", ["infer"])
    start, key_id, secret = text.split("_")
    wrong = {
        "first": f"{start}_{key_id}_{'0' if secret[0] != '0' else '1'}{secret[1:]}",
        "last": f"{start}_{key_id}_{secret[:-1]}{'0' if secret[-1] != '0' else '1'}",
        "id": f"{start}_{'0' * 8}_{secret}",
        "longer": text + "0",
        "empty secret": f"{start}_{key_id}_",
        "case": text.upper(),
        "sk": "sk-proj-123",
        "ä": "ä" * 80,
    }[change]
    with pytest.raises(AuthError, match="wrong or was revoked"):
        ring.check(f"Bearer {wrong}", "infer")


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("", ["infer"], "key name '': expected 1 to 64"),
        ("x" * 65, ["infer"], "expected 1 to 64"),
        ("a\nb", ["infer"], "expected 1 to 64"),
        ("ci", [], "key 'ci': no scope was given; give one or more of: infer, admin"),
        ("ci", ["root"], "key 'ci': scope 'root' is not known; give one or more of: infer, admin"),
    ],
)
def test_what_cannot_be_a_key(name: str, scopes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        KeyRing().create(name, scopes)


def test_revoking_what_is_not_there() -> None:
    ring, key, _ = KeyRing().create("ci", ["infer"])
    with pytest.raises(InputError, match=f"no key has the id 'none'; known: {key.id}"):
        ring.revoke("none")


TERMS = KeyTerms(
    models=("digits", "gpt-*"), requests_per_s=10, burst=20, tokens_per_s=1e3, bytes_per_s=1e6, concurrency=4,
    weight=5, priority="batch", expires_at=9e9,
)  # fmt: skip


def test_what_a_key_may_use_is_kept_with_it() -> None:
    ring, key, _ = KeyRing().create("ci", ["infer"], TERMS)
    assert KeyRing.from_json(json.loads(json.dumps(ring.to_json()))) == ring
    public = key.to_public()
    assert public["terms"] == {**dataclasses.asdict(TERMS), "models": ["digits", "gpt-*"]}
    assert KeyRing().create("ci", ["infer"])[1].to_public()["terms"] == {}
    for model in ("digits", "gpt-2", "gpt-"):
        key.require_model(model)
    for model in ("digits2", "gpt", "iris"):
        with pytest.raises(WrongModel, match=f"key 'ci' is for digits, gpt-\\*, not for the model '{model}'"):
            key.require_model(model)


def test_a_ring_of_an_earlier_version_is_read() -> None:
    ring, key, text = KeyRing().create("ci", ["infer"])
    kept = ring.to_json()
    for added in ("terms", "old_text_until", "older"):
        del kept[key.id][added]
    assert sorted(kept[key.id]) == ["created_at", "id", "name", "scopes", "sha256"]
    assert KeyRing.from_json(kept).check(f"Bearer {text}", "infer") == key


def test_an_expired_key_says_so_to_who_has_it() -> None:
    ring, key, text = KeyRing().create("ci", ["infer"], KeyTerms(expires_at=2000.0), now_s=1000.0)
    assert ring.check(f"Bearer {text}", "infer", now_s=1999.9) == key
    for check in (lambda: ring.check(f"Bearer {text}", "infer", now_s=2000.0),
                  lambda: ring.check_optional(f"Bearer {text}", now_s=2000.0)):  # fmt: skip
        with pytest.raises(AuthError, match="key 'ci' expired on 1970-01-01 00:33:20 UTC"):
            check()
    with pytest.raises(AuthError, match="wrong or was revoked"):
        ring.check(f"Bearer er_{key.id}_{'0' * 64}", "infer", now_s=2000.0)
    with pytest.raises(InputError, match=r"key 'ci' expired on .*; make a new one"):
        ring.rotate(key.id, now_s=2000.0)
    with pytest.raises(InputError, match="expires_at is 1970-01-01 00:33:20 UTC, which is past"):
        KeyRing().create("ci", ["infer"], KeyTerms(expires_at=2000.0), now_s=2000.0)


def test_a_rotated_key_has_two_texts_for_a_while() -> None:
    ring, key, first = KeyRing().create("ci", ["infer"], TERMS, now_s=0.0)
    ring, rotated, second = ring.rotate(key.id, 60.0, now_s=100.0)
    assert (rotated.id, rotated.name, rotated.terms) == (key.id, "ci", TERMS)
    assert second != first
    assert [ring.find(text, now_s=159.9) for text in (first, second)] == [rotated, rotated]
    assert [ring.find(text, now_s=160.0) for text in (first, second)] == [None, rotated]
    assert first[-64:] not in json.dumps(ring.to_json())
    assert KeyRing.from_json(json.loads(json.dumps(ring.to_json()))) == ring
    ring, third_key, third = ring.rotate(key.id, 60.0, now_s=110.0)
    found = [ring.find(text, now_s=120.0) for text in (first, second, third)]
    assert found == [None, third_key, third_key], "only one old text is good"
    ring, last_key, last = ring.rotate(key.id, 0, now_s=110.0)
    assert [ring.find(text, now_s=110.0) for text in (third, last)] == [None, last_key]
    assert ring.revoke(key.id).find(last) is None


@pytest.mark.parametrize("overlap_s", [-1, float("nan"), float("inf"), 91 * 86_400])
def test_an_overlap_that_is_none(overlap_s: float) -> None:
    ring, key, _ = KeyRing().create("ci", ["infer"])
    with pytest.raises(InputError, match="overlap_s: expected 0 to 7776000 seconds"):
        ring.rotate(key.id, overlap_s)
