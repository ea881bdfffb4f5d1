"""The ledger's start and end, and its client, with a Ray that answers what a test says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError, RpcError

from eagleray.capacity import Allotment, Request, Statement
from eagleray.cluster import ledger, ledger_client, observation_ray260, profiles
from eagleray.cluster.arbiter import POLICY
from eagleray.cluster.ledger_client import LedgerClient
from eagleray.cluster.names import LEDGER, NAMESPACE
from eagleray.errors import CapacityError, ClusterError, InputError
from eagleray.serving import start
from eagleray.serving.control_settings import CONTROLLER, ControllerSettings

STATEMENT = Statement(Request.job("j", "job j", {"CPU": 1}))


class Ray:
    """Has the ledger's actor or not, and answers its calls one after the other; exceptions are raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_actor = self.is_connected = True
        self.answers: list = []
        self.called: list[tuple] = []
        self.killed: list = []
        self.num_looked_up = 0
        self.is_expected = False
        monkeypatch.setattr(ray, "is_initialized", lambda: self.is_connected)
        monkeypatch.setattr(ray, "get_actor", self.get_actor)
        monkeypatch.setattr(ray, "get", lambda _call, timeout: self.answer())
        monkeypatch.setattr(ray, "kill", self.killed.append)
        monkeypatch.setattr(observation_ray260, "gcs_client", lambda: None)
        monkeypatch.setattr(observation_ray260, "expect_ledger", self.expect)
        monkeypatch.setattr(observation_ray260, "is_ledger_expected", lambda: self.is_expected)

    def expect(self, _client: None, is_expected: bool = True) -> None:
        self.is_expected = is_expected

    def get_actor(self, name: str, namespace: str) -> Ray:
        assert (name, namespace) == (LEDGER, NAMESPACE)
        self.num_looked_up += 1
        if not self.has_actor:
            raise ValueError("no such actor")
        return self

    def __getattr__(self, method: str):
        return SimpleNamespace(remote=lambda *arguments: self.called.append((method, *arguments)))

    def answer(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


def died() -> ActorDiedError:
    return ActorDiedError()


def test_settings_travel_as_plain_values():
    wanted = ledger.LedgerSettings("tests", "s3://bucket", replace(POLICY, lease_s=4.0))
    assert ledger.LedgerSettings.from_json(wanted.to_json()) == wanted
    assert isinstance(wanted.to_json()["policy"], dict)


@pytest.mark.parametrize(("profile", "lease_s"), [("default", 15.0), ("fast", 15.0), ("lossy", 80.0)])
def test_a_holder_that_the_profile_lets_be_cut_off_keeps_its_claim(profile, lease_s):
    assert ledger.patient(POLICY, profiles.named(profile)) == replace(POLICY, lease_s=lease_s)


def test_the_ledger_and_the_serving_controller_outlive_who_starts_them(fake, monkeypatch):
    made = []

    def options(**given):
        return SimpleNamespace(remote=lambda wanted: made.append((given, wanted)) or fake)

    monkeypatch.setattr(ray, "remote", lambda actor_class: SimpleNamespace(options=options))
    fake.answers = [None]
    wanted = ledger.LedgerSettings("tests", "s3://bucket")
    serving = ControllerSettings("tests", "folder", "key", "127.0.0.1", 8000, "s3://bucket", "uri")
    assert ledger.start(wanted) is start.start(serving) is fake
    assert [given for _, given in made] == [wanted.to_json(), serving.to_json()]
    assert [(given.pop("name"), given.pop("max_concurrency")) for given, _ in made] == [
        (LEDGER, 4000),
        (CONTROLLER, 1000),
    ]
    common = {"namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached", "max_restarts": -1}
    on_head = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    assert [given for given, _ in made] == [{**common, **on_head}] * 2
    assert fake.is_expected


def test_a_client_asks_the_actor_and_looks_it_up_once(fake):
    client = LedgerClient()
    assert fake.num_looked_up == 0
    fake.answers = [Allotment(1, {"a": 1}), None, None, {"claims": []}]
    assert client.exchange(STATEMENT) == Allotment(1, {"a": 1})
    assert client.wait("j", 1, 0.5) is None
    client.close("j")
    assert client.report() == {"claims": []}
    assert fake.called == [("exchange", STATEMENT), ("wait", "j", 1, 0.5), ("close", "j"), ("report",)]
    assert fake.num_looked_up == 1


@pytest.mark.parametrize("error", [InputError("another bundle"), CapacityError("wants 9 units")])
def test_a_refusal_comes_out_as_itself(fake, error):
    fake.answers = [RayTaskError("exchange", "traceback", error)]
    with pytest.raises(type(error)) as caught:
        LedgerClient().exchange(STATEMENT)
    assert caught.value is error


def test_a_fault_of_the_ledger_is_no_refusal(fake):
    fake.answers = [RayTaskError("exchange", "traceback", ZeroDivisionError("a fault"))]
    with pytest.raises(RayTaskError):
        LedgerClient().exchange(STATEMENT)


def test_a_ledger_that_is_away_is_none_and_found_again(fake):
    client = LedgerClient()
    fake.answers = [GetTimeoutError("slow"), ActorUnavailableError("restarting", None), died()]
    assert [client.exchange(STATEMENT) for _ in range(3)] == [None] * 3
    assert fake.num_looked_up == 1, (
        "one that lives is not looked up: while the GCS is away that takes a minute"
    )
    fake.has_actor = False
    assert client.exchange(STATEMENT) is None
    fake.has_actor, fake.answers = True, [Allotment(2)]
    assert client.exchange(STATEMENT) == Allotment(2)
    fake.is_connected = False
    assert client.exchange(STATEMENT) is None, "else Ray would start a cluster"


def test_a_gcs_that_cannot_be_asked_is_a_ledger_that_is_away(fake, monkeypatch):
    client, errors = LedgerClient(), [GetTimeoutError("the GCS is away"), RpcError("unavailable")]

    def fails_twice(name: str, namespace: str) -> Ray:
        assert not client._lock.locked(), "others that know the actor need not wait"
        if errors:
            raise errors.pop()
        return fake.get_actor(name, namespace)

    monkeypatch.setattr(ray, "get_actor", fails_twice)
    assert [client.report() for _ in range(2)] == [None, None]
    fake.answers = [{"claims": []}]
    assert client.report() == {"claims": []}


def test_a_cluster_without_a_ledger_and_one_whose_ledger_is_still_to_come(fake, monkeypatch, caplog):
    assert LedgerClient.find() is not None
    fake.has_actor = False
    assert LedgerClient.find() is None
    fake.is_expected = True
    assert not caplog.records
    assert LedgerClient.find(timeout_s=0.0) is None
    assert "no ledger came within 0 s: who asks for it goes on without a claim" in caplog.text

    def come(_seconds: float) -> None:
        fake.has_actor = True

    monkeypatch.setattr(ledger_client.time, "sleep", come)
    assert LedgerClient.find() is not None


def test_the_end_of_a_ledger(fake):
    fake.is_expected, fake.answers = True, [None]
    ledger.end()
    assert (fake.called, fake.killed, fake.is_expected) == ([("end",)], [fake], False)
    fake.answers = [died()]
    ledger.end()
    assert fake.killed == [fake, fake], "one that restarts knows nothing, and is not to come back"
    fake.has_actor = False
    ledger.end()
    fake.has_actor, fake.answers = True, [GetTimeoutError("Get timed out")]
    with pytest.raises(ClusterError, match=r"^the ledger has not ended: Get timed out; run this again$"):
        ledger.end()
    assert len(fake.killed) == 2
