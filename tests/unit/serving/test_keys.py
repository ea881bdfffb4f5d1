"""API keys: what is kept of them, what they open, what is said where they do not."""

from __future__ import annotations

import json
import re
from hmac import compare_digest

import pytest

from eagleray.errors import AuthError, InputError
from eagleray.serving.keys import _NO_KEY, KeyRing, WrongScope


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
