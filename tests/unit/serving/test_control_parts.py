"""The controller's small parts: its memory, who reads it, the guess of a wait, and specs of services."""

from __future__ import annotations

import asyncio
import stat
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from eagleray.errors import ServiceError, SpecError
from eagleray.protocol.key_terms import KeyTerms
from eagleray.serving import memory
from eagleray.serving.controller_client import Reader
from eagleray.serving.keys import KeyRing
from eagleray.serving.lookout import Lookout
from eagleray.serving.readers import Readers
from eagleray.serving.services import Record
from eagleray.serving.waiting import Waiting
from eagleray.specs import ServiceSpec, load


def test_the_record_on_disk(tmp_path):
    path = tmp_path / "serving" / "local" / "record.json"
    assert memory.load(path) == Record()
    keys, _, _ = KeyRing().create("app", ["infer"])
    record = replace(Record(), revision=3, keys=keys)
    memory.save(path, record)
    assert memory.load(path) == record
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "null", "7", "{}", '{"format": 99}', '{"format": 1}', "\x00", "[" * 100_000),
        '{"format": 1, "revision": Infinity, "services": {}, "retiring": [], "applied": {}, "keys": {}}',
        '{"format": 1, "revision": 1, "services": {"a": {}}, "retiring": [], "applied": {}, "keys": {}}',
        '{"format": 1, "revision": 1, "services": {}, "retiring": [{"served": {"spec": {}, "card": {}}}]}',
    ],
    ids=lambda text: text[:20],
)
def test_a_record_that_cannot_be_read_is_not_overwritten(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ServiceError, match=r"record\.json cannot be read.*move it away") as caught:
        memory.load(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_terms_of_a_key_that_are_none_are_damage_like_any_other(tmp_path):
    path = tmp_path / "record.json"
    keys, _, _ = KeyRing().create("app", ["infer"], KeyTerms(weight=7))
    memory.save(path, replace(Record(), keys=keys))
    path.write_text(
        path.read_text().replace('"weight": 7', '"weight": 700').replace('"weight":7', '"weight":700')
    )
    with pytest.raises(ServiceError, match=r"cannot be read \(InputError: weight: expected .*move it away"):
        memory.load(path)


def test_the_first_admin_key(tmp_path):
    path = tmp_path / "cluster" / "admin.key"
    ring = memory.ensure_admin_key(path, KeyRing())
    key = ring.check(f"Bearer {path.read_text()}", "admin")
    assert key.name == memory.ADMIN_KEY_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert memory.ensure_admin_key(path, ring) is ring, "it is made once"


def test_an_admin_key_whose_text_is_lost_opens_nothing(tmp_path):
    path = tmp_path / "admin.key"
    ring, other, _ = KeyRing().create("of a colleague", ["admin"])
    ring = memory.ensure_admin_key(path, ring)
    lost = path.read_text()
    path.write_text("er_00000000_" + "0" * 64)
    renewed = memory.ensure_admin_key(path, ring)
    assert renewed.find(lost) is None
    assert renewed.find(path.read_text()) is not None
    assert other.id in renewed.keys


def test_an_application_is_drained_when_every_ingress_says_so():
    readers = Readers()
    assert readers.drained(0.0) == frozenset(), "no ingress is no news"
    readers.heard("a", ["m--x--v1"], 1.0)
    assert readers.drained(1.0) == {"m--x--v1"}
    readers.heard("b", [], 2.0)
    assert readers.drained(2.0) == frozenset()
    assert readers.drained(31.5) == frozenset(), "a is silent, b is not drained"
    readers.heard("c", ["m--x--v1"], 32.0)
    assert readers.drained(33.0) == {"m--x--v1"}, "b is forgotten"


def test_an_ingress_that_has_ended_is_waited_for_no_longer():
    readers = Readers()
    readers.heard("a", ["m--x--v1"], 1.0)
    readers.heard("b", [], 2.0)
    assert readers.quiet(3.5) == ["a"]
    readers.forget("b")
    readers.forget("b")
    assert readers.drained(3.5) == {"m--x--v1"}


def test_whether_those_that_are_silent_live_is_asked_once_a_second_in_a_thread(caplog):
    async def run() -> None:
        now_s, asked, forgotten = 10.0, [], []

        def is_gone(name: str) -> bool:
            assert threading.current_thread() is not threading.main_thread()
            asked.append(name)
            if name == "unknown":
                raise ConnectionError("the GCS is away")
            return name == "killed"

        lookout = Lookout(is_gone, forgotten.append, clock=lambda: now_s)
        for later_s, silent in ((0, ()), (0, ("cut off", "killed")), (0.9, ("killed",)), (0.2, ("unknown",))):
            now_s += later_s
            lookout.look(silent)
            lookout.look(("another",) if lookout.is_looking else ())
            while lookout.is_looking:
                await asyncio.sleep(0.001)
        assert (asked, forgotten) == (["cut off", "killed", "unknown"], ["killed"])
        assert "lives is not known: the GCS is away" in caplog.text

    asyncio.run(run())


def test_a_gateway_says_goodbye_by_the_name_that_ray_knows_it_by():
    async def run() -> None:
        told: list[str] = []

        async def leave(name: str) -> None:
            told.append(name)
            raise ValueError("there is no controller any more")

        reader = Reader("ab12")
        reader._controller = SimpleNamespace(leave=SimpleNamespace(remote=leave))
        await reader.leave()
        assert told == [reader.name] == ["ab12"]

    asyncio.run(run())


def test_an_ingress_uses_an_application_as_long_as_a_request_that_began_before_is_under_way():
    async def run():
        reader = Reader()
        release = asyncio.Event()

        async def app(scope, receive, send):
            await release.wait()

        counted = reader.counted(app)
        reader.take({"revision": 1, "draining": []})
        old = asyncio.ensure_future(counted({"type": "http"}, None, None))
        await asyncio.sleep(0)
        reader.take({"revision": 2, "draining": ["m--x--v1"]})
        assert reader.is_draining
        assert reader.drained == []
        new = asyncio.ensure_future(counted({"type": "http"}, None, None))
        await asyncio.sleep(0)
        reader.take({"revision": 3, "draining": ["m--x--v1", "m--x--v2"]})
        assert reader.drained == []
        release.set()
        await old
        await new
        assert reader.drained == ["m--x--v1", "m--x--v2"]
        reader.take({"revision": 4, "draining": []})
        assert not reader.is_draining

    asyncio.run(run())


def test_what_was_changed_through_an_ingress_is_known_there_when_it_is_answered(monkeypatch):
    async def run() -> None:
        reader = Reader()
        reader.take({"revision": 1, "draining": []})
        await reader.reach(1)
        reaching = asyncio.ensure_future(reader.reach(3))
        for revision in (2, 3):
            await asyncio.sleep(0.001)
            assert not reaching.done()
            reader.take({"revision": revision, "draining": []})
        await asyncio.wait_for(reaching, 10)
        monkeypatch.setattr("eagleray.serving.controller_client._REACH_S", 0.001)
        await asyncio.wait_for(reader.reach(4), 10)  # a controller that has no more to say

    asyncio.run(run())


def test_a_request_that_began_after_does_not_hold_an_application():
    async def run():
        reader, release = Reader(), asyncio.Event()

        async def app(scope, receive, send):
            await release.wait()

        reader.take({"revision": 2, "draining": ["m--x--v1"]})
        task = asyncio.ensure_future(reader.counted(app)({"type": "http"}, None, None))
        await asyncio.sleep(0)
        assert reader.drained == ["m--x--v1"]
        release.set()
        await task

    asyncio.run(run())


def test_the_wait_is_guessed_from_the_rate_of_answers():
    waiting = Waiting()
    for _ in range(60):
        waiting.begin(0.0)
    for number in range(20):  # 10 a second
        waiting.end(number / 10, is_answered=True)
    assert waiting.num_under_way == 40
    assert 3 <= waiting.retry_after_s(2.0) <= 5


def test_the_wait_for_a_start_is_what_is_left_of_it():
    waiting = Waiting()
    waiting.begin(0.0)
    first_guess_s = waiting.retry_after_s(0.0)
    waiting.end(6.0, is_answered=True)
    assert waiting.start_s == 6.0
    waiting.begin(100.0)  # nothing was asked for long: it was scaled to zero, or might have been
    assert waiting.retry_after_s(102.0) == 4.0
    assert waiting.retry_after_s(120.0) == 1.0, "never less than a second"
    assert 1.0 < first_guess_s <= 60.0


def test_refusals_are_no_answers():
    waiting = Waiting()
    waiting.begin(0.0)
    for _ in range(100):
        waiting.begin(1.0)
        waiting.end(1.0, is_answered=False)
    assert waiting.retry_after_s(1.0) > 5


SPEC = 'kind = "service"\nname = "digits"\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("version = 0", r"version: 0 is no version; write a number, \"latest\", or an alias"),
        ("version = true", "version: .*True"),
        ('version = "3"', "'3' is no version; write a number"),
        ('version = "candidate"', 'or an alias as "@candidate"'),
        ("min_replicas = 2", r"min_replicas \(2\) exceeds max_replicas \(1\); lower one or raise the other"),
        ("max_replicas = 0", "max_replicas"),
        ("gpus_per_replica = 1.5", "must be a whole number above 1"),
        ("cpus_per_replica = 0", "a replica needs one of them"),
        ("max_batch_size = 0", "max_batch_size"),
        ("batch_wait_s = 0.002", r"batch_wait_s: no request waits for others any more.*take this line out"),
        ("replicas = 3", "unknown key 'replicas'; did you mean 'min_replicas'"),
    ],
)
def test_bad_service_specs(tmp_path, line, message):
    path = tmp_path / "service.toml"
    path.write_text(SPEC + line)
    with pytest.raises(SpecError, match=message):
        load(ServiceSpec, path)


@pytest.mark.parametrize("name", ["a#b", "a/b", "..", "a" * 300, "Digits", ""])
def test_names_that_no_service_can_have(tmp_path, name):
    path = tmp_path / "service.toml"
    path.write_text(f'kind = "service"\nname = "{name}"\n')
    with pytest.raises(SpecError, match="name: "):
        load(ServiceSpec, path)


@pytest.mark.parametrize(
    ("version", "ref"),
    [("latest", "digits"), (3, "digits/versions/3"), ("@candidate", "digits@candidate")],
)
def test_the_version_as_a_reference(version, ref):
    assert ServiceSpec(kind="service", name="digits", version=version).ref == ref
