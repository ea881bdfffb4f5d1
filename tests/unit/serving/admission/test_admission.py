"""Who is let in: each refusal in its turn, and what a ticket holds until it is closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving.admission.door import Admission, Head
from eagleray.serving.admission.gate import Gate
from eagleray.serving.admission.refusal import Refusal
from eagleray.serving.admission.ticket import Ticket
from eagleray.serving.keys import KeyRing


@dataclass
class Clock:
    now_s: float = 50.0

    def __call__(self) -> float:
        return self.now_s


class Door:
    """An admission with one key on a clock of the test's."""

    def __init__(self, terms: KeyTerms | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.keys, self.key, self.text = KeyRing().create("app", ["infer"], terms)
        self.admission = Admission(self.keys, clock=self.clock, wall=self.clock, **options)

    def ask(self, **head: Any) -> Ticket | Refusal:
        return self.admission.admit(Head(**{"authorization": f"Bearer {self.text}", **head}))

    def enter(self, **head: Any) -> Ticket:
        found = self.ask(**head)
        assert isinstance(found, Ticket), found
        return found

    def refuse(self, **head: Any) -> Refusal:
        found = self.ask(**head)
        assert isinstance(found, Refusal)
        return found


def test_each_reason_comes_in_its_turn() -> None:
    """A request with everything wrong; then one reason less each time."""
    door = Door(
        KeyTerms(models=("iris",), requests_per_s=1, bytes_per_s=1000, concurrency=1), max_body_bytes=10**6
    )
    full = Gate("model 'iris' version 1", window=1, max_queued=0)
    full.forecast.observe(9.0, 1)
    full.cost_under_way = 1
    wrong: dict[str, Any] = {
        "authorization": f"Bearer {door.text[:-1]}?", "num_bytes": 10**7, "model": "digits", "gate": full,
        "timeout_ms": "soon",
    }  # fmt: skip

    def status() -> int:
        return door.refuse(**wrong).status

    ticket = door.enter(num_bytes=2000)
    assert status() == 413
    wrong["num_bytes"] = 900_000
    assert status() == 401
    del wrong["authorization"]
    assert status() == 403
    wrong["model"] = "iris"
    assert status() == 400
    wrong["timeout_ms"] = "1000"
    for resource in ("requests", "bytes", "concurrency"):
        refusal = door.refuse(**wrong)
        assert (refusal.status, refusal.headers["x-ratelimit-resource"]) == (429, resource), refusal
        door.clock.now_s += 1.0
    ticket.close(door.clock())
    assert status() == 503
    full.max_queued, full.window = 10, 2
    refusal = door.refuse(**wrong)
    assert (refusal.status, refusal.headers["retry-after"]) == (503, "22")
    assert "an answer would take 22.5 s, and the request waits 1 s" in refusal.message
    del wrong["timeout_ms"]
    door.enter(**wrong)


def test_what_a_refusal_for_the_rate_says() -> None:
    door = Door(KeyTerms(requests_per_s=4, burst=2))
    for _ in range(2):
        door.enter().close(door.clock())
    refusal = door.refuse()
    assert refusal.message == "the API key 'app' may use 4 requests a second and has; try again in 0.25 s"
    assert refusal.headers == {
        "retry-after": "1", "retry-after-ms": "250", "x-ratelimit-resource": "requests",
        "x-ratelimit-limit": "4", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "0.500",
    }  # fmt: skip
    door.clock.now_s += 0.25
    ticket = door.enter()
    assert ticket.account.state(door.clock())["x-ratelimit-remaining"] == "0"
    door.clock.now_s += 0.5
    assert ticket.account.state(door.clock())["x-ratelimit-remaining"] == "2"


def test_what_was_refused_for_want_of_capacity_is_not_counted() -> None:
    door = Door(KeyTerms(requests_per_s=1))
    gate = Gate("m", window=0, max_queued=0)
    assert [door.refuse(gate=gate).status for _ in range(5)] == [503] * 5
    door.enter()


def test_concurrency_counts_what_is_open_and_closing_twice_closes_once() -> None:
    door = Door(KeyTerms(concurrency=2))
    first, second = door.enter(), door.enter()
    refusal = door.refuse()
    assert refusal.message == "the API key 'app' may have 2 requests under way and has; wait for one of them"
    assert (refusal.headers["x-ratelimit-limit"], refusal.headers["x-ratelimit-remaining"]) == ("2", "0")
    first.close(door.clock())
    first.close(door.clock())
    third = door.enter()
    assert door.refuse().status == 429
    for ticket in (second, third):
        ticket.close(door.clock())
    assert [isinstance(door.ask(), Ticket) for _ in range(3)] == [True, True, False]


def test_bytes_that_were_not_announced_and_those_of_the_answer_are_paid_for() -> None:
    door = Door(KeyTerms(bytes_per_s=1000))
    ticket = door.enter()
    ticket.received(400)
    ticket.sent(850)
    assert door.refuse().headers["retry-after-ms"] == "1001", "250 were there, 1,250 were used"
    door.clock.now_s += 1.002
    door.enter()


def test_a_body_larger_than_a_quarter_second_passes_when_nothing_is_owed() -> None:
    door = Door(KeyTerms(bytes_per_s=1000))
    door.enter(num_bytes=5000)
    assert float(door.refuse(num_bytes=1).headers["retry-after-ms"]) == pytest.approx(4751, abs=1)


def test_tokens_are_reserved_and_given_back() -> None:
    door = Door(KeyTerms(tokens_per_s=400))
    first, second = door.enter(), door.enter()
    assert first.reserve_tokens(100, door.clock()) is None
    assert second.reserve_tokens(1, door.clock()) is not None, (
        "a quarter of a second's worth is all there was"
    )
    refused = door.refuse()
    assert refused.headers["x-ratelimit-resource"] == "tokens"
    first.used_tokens(30)
    door.enter()
    third = door.enter()
    found = third.reserve_tokens(400, door.clock())
    assert found is not None
    assert found.status == 429
    first.used_tokens(150)
    assert door.refuse().status == 429, "more than was reserved"


def test_without_a_key_nothing_is_limited_and_a_bad_key_is_none() -> None:
    door = Door(KeyTerms(requests_per_s=1))
    for _ in range(100):
        door.enter(authorization="", is_key_needed=False)
        door.enter(authorization="Bearer sk-of-another", is_key_needed=False)
    assert door.refuse(authorization="").status == 401
    refusal = door.refuse(authorization=f"Bearer er_{door.key.id}_{'0' * 64}", is_key_needed=False)
    assert (refusal.status, "www-authenticate" in refusal.headers) == (401, True)
    door.enter(is_key_needed=False)
    assert door.refuse(is_key_needed=False).status == 429, "a key that comes is counted, needed or not"
    assert door.refuse(scope="admin").status == 403


def test_a_revoked_key_ends_what_is_open_at_once_and_others_stay() -> None:
    door = Door()
    keys, _, other_text = door.keys.create("other", ["infer"])
    door.admission.take(keys)
    ended: list[Refusal] = []
    tickets = [door.enter(), door.enter(), door.enter(authorization=f"Bearer {other_text}")]
    door.enter()  # nobody wants to hear of its end
    for ticket in tickets:
        ticket.on_end = ended.append
    tickets[1].close(door.clock())
    door.admission.take(keys.revoke(door.key.id))
    assert [refusal.status for refusal in ended] == [401]
    assert ended[0].message == "the API key 'app' was revoked"
    assert door.refuse().status == 401
    tickets[0].close(door.clock())
    door.admission.take(KeyRing())
    assert len(ended) == 2


def test_a_key_that_expires_ends_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door()
    entry = door.keys.to_json()
    entry[door.key.id]["terms"] = {"expires_at": 100.0}
    door.admission.take(KeyRing.from_json(entry))
    monkeypatch.setattr("eagleray.serving.keys.time.time", door.clock)
    ended: list[Refusal] = []
    door.enter().on_end = ended.append
    door.clock.now_s = 99.9
    door.admission.end_expired()
    assert ended == []
    door.clock.now_s = 100.0
    door.admission.end_expired()
    assert [refusal.message for refusal in ended] == ["the API key 'app' expired on 1970-01-01 00:01:40 UTC"]
    assert "expired on" in door.refuse().message


def test_other_terms_hold_from_now_on_and_add_nothing() -> None:
    door = Door(KeyTerms(requests_per_s=2, burst=2))
    for _ in range(2):
        door.enter()
    entry = door.keys.to_json()
    entry[door.key.id]["terms"] = {"requests_per_s": 100, "burst": 50}
    door.admission.take(KeyRing.from_json(entry))
    assert door.refuse().status == 429
    door.clock.now_s += 0.1
    assert sum(isinstance(door.ask(), Ticket) for _ in range(20)) == 10


def test_a_thousand_keys_at_once() -> None:
    """Bad input of the issue: each gets its own, none another's; when they go, nothing is left of them."""
    door, texts = Door(), []
    keys = door.keys
    for number in range(1000):
        keys, _, text = keys.create(f"k{number}", ["infer"], KeyTerms(requests_per_s=1, concurrency=1))
        texts.append(text)
    door.admission.take(keys)
    tickets = [door.enter(authorization=f"Bearer {text}") for text in texts]
    assert {door.refuse(authorization=f"Bearer {text}").status for text in texts} == {429}
    door.clock.now_s += 1.0
    for ticket in tickets:
        ticket.close(door.clock())
    assert len([door.enter(authorization=f"Bearer {text}") for text in texts]) == 1000
    door.admission.take(door.keys)
    assert list(door.admission._accounts) == [""]
