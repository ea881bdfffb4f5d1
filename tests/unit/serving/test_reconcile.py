"""What the controller does next, as a table: what is to be served, what Serve runs, which steps."""

from __future__ import annotations

import dataclasses
import json

import pytest

from eagleray.errors import ModelNotFound
from eagleray.serving import services
from eagleray.serving.reconcile import (
    Apply,
    Delete,
    Fail,
    Forget,
    MarkReady,
    Retire,
    Seen,
    ailing,
    carry_out,
    decide,
    our_error,
)
from eagleray.serving.services import Record, ServedVersion
from eagleray.specs import ServiceSpec
from support import cards

NOW = 1000.0
RUNNING, DEPLOYING, DELETING = Seen("running"), Seen("deploying"), Seen("deleting")
V1, V2, V3 = (f"m--digits--v{number}" for number in (1, 2, 3))
CARD = cards.card()


def version(number: int, **spec) -> ServedVersion:
    made = ServiceSpec(kind="service", name="digits", **spec)
    return ServedVersion(made, number, f"/models/{number}", f"{number:064}", CARD, deployed_at=NOW)


class World:
    """A record, and a Serve that does what it is told; `seen` may be changed by hand."""

    def __init__(self) -> None:
        self.record = Record()
        self.seen: dict[str, Seen] = {}
        self.drained: set[str] = set()
        self.now_s = NOW

    def deploy(self, number: int, **spec) -> None:
        self.record = services.deploy(self.record, version(number, **spec))

    def undeploy(self, number: int | None = None) -> list[int]:
        self.record, going = services.undeploy(self.record, "digits", number, self.now_s)
        return going

    def decide(self):
        return decide(self.record, self.seen, self.drained, self.now_s, drain_limit_s=65)

    def step(self):
        """One round; what Serve is told shows in `seen`."""
        actions = self.decide()
        for action in actions:
            self.record = carry_out(self.record, action, self.now_s)
            if isinstance(action, Apply):
                self.seen[action.served.app] = DEPLOYING
            if isinstance(action, Delete):
                self.seen[action.app] = DELETING
        return [type(action).__name__ for action in actions]

    def settle(self, limit: int = 10):
        """Rounds until nothing is left to do; what deploys runs, what is deleted is gone."""
        done = []
        while (names := self.step()) or DEPLOYING in self.seen.values():
            done += names
            self.seen = {
                app: RUNNING if seen == DEPLOYING else seen
                for app, seen in self.seen.items()
                if seen != DELETING
            }
            limit -= 1
            assert limit, f"no end: {self.decide()}"
        return done

    @property
    def service(self):
        return self.record.services["digits"]

    @property
    def states(self):
        return {number: found.target().state for number, found in self.service.versions.items()}


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_version(world):
    world.deploy(1)
    assert world.states == {1: "starting"}
    [apply] = world.decide()
    assert isinstance(apply, Apply)
    assert (apply.served.app, apply.is_new) == (V1, True)
    world.step()
    assert world.decide() == []  # Serve has it, and it is not there yet
    world.seen[V1] = RUNNING
    world.now_s += 6
    assert world.decide() == [MarkReady("digits", 1)]
    world.step()
    assert world.record.starts == {V1: 6.0}
    assert world.states == {1: "ready"}
    assert world.record.is_settled
    assert world.decide() == []


def test_the_second_version_takes_over_when_it_is_ready_and_not_before(world):
    world.deploy(1)
    world.settle()
    world.deploy(2)
    assert not world.record.is_settled
    world.step()
    assert (world.service.default, world.service.wanted) == (1, 2)
    assert world.decide() == []
    world.seen[V2] = RUNNING
    assert world.step() == ["MarkReady"]
    assert world.step() == ["Switch"]
    assert world.service.default == 2
    assert world.decide() == [Retire("digits", 1)]
    world.step()
    assert world.states == {2: "ready"}
    assert world.record.draining == [V1]
    assert world.decide() == []  # requests may still be under way on it
    world.drained = {V1}
    assert world.decide() == [Delete(V1)]
    world.step()
    assert world.decide() == []
    del world.seen[V1]
    assert world.decide() == [Forget(V1)]
    world.step()
    assert world.record.is_settled


def test_a_retired_version_ends_after_the_limit_whatever_is_under_way(world):
    world.deploy(1)
    world.settle()
    world.undeploy()
    assert world.decide() == []
    world.now_s += 66
    assert world.decide() == [Delete(V1)]


def test_a_version_that_fails_leaves_the_old_one_where_it_is(world):
    world.deploy(1)
    world.settle()
    world.deploy(2)
    world.step()
    world.seen[V2] = Seen("failed", "ray::...\neagleray.errors.PackageError: weights differ")
    assert world.decide() == [Fail("digits", 2, "weights differ")]
    world.step()
    assert world.states == {1: "ready", 2: "failed"}
    assert (world.service.default, world.service.wanted) == (1, 1)
    assert world.decide() == [Delete(V2)]
    world.settle()
    assert world.states == {1: "ready", 2: "failed"}, "what went wrong stays to be read"
    world.deploy(3)
    world.drained = {V1}
    world.settle()
    assert world.states == {3: "ready"}


def test_the_first_version_fails(world):
    world.deploy(1)
    world.step()
    world.seen[V1] = Seen("failed", "eagleray.errors.PackageError: no")
    world.settle()
    assert world.states == {1: "failed"}
    assert world.service.versions[1].target().message == "no"
    world.deploy(1)  # repaired: the same version again
    assert "Apply" in world.settle()
    assert world.states == {1: "ready"}


def test_a_newer_version_overtakes_one_that_is_still_starting(world):
    world.deploy(1)
    world.settle()
    world.deploy(2)
    world.step()
    world.deploy(3)
    assert {type(action) for action in world.decide()} == {Apply, Retire}
    world.step()
    assert world.states == {1: "ready", 3: "starting"}
    assert world.decide() == [Delete(V2)]  # nobody ever came to it: nothing to wait for


def test_a_version_beside_the_default_is_left_alone(world):
    world.deploy(1)
    world.settle()
    world.deploy(2, default=False)
    world.settle()
    assert world.states == {1: "ready", 2: "ready"}
    assert world.service.default == 1
    world.deploy(2)  # now it is to be the default: nothing is started anew
    world.drained = {V1}
    assert "Apply" not in world.settle()
    assert world.states == {2: "ready"}


def test_other_replicas_of_the_same_version_need_no_restart(world):
    world.deploy(1)
    world.settle()
    before = world.service.versions[1]
    world.deploy(1, max_replicas=3)
    [apply] = world.decide()
    assert isinstance(apply, Apply)
    assert not apply.is_new
    assert apply.served.restart_fingerprint == before.restart_fingerprint
    world.step()
    assert world.states == {1: "ready"}, "its replicas answer all the time"
    assert world.service.versions[1].fingerprint != before.fingerprint


def test_what_the_ingress_alone_reads_is_not_handed_to_serve(world):
    world.deploy(1)
    world.settle()
    world.deploy(1, cache_mib=1.5)
    assert world.decide() == []
    assert world.service.versions[1].target().cache_bytes == 3 * 2**19


@pytest.mark.parametrize("change", [{"max_batch_size": 2}, {"allow_code": True}])
def test_what_a_replica_reads_once_needs_new_ones(change):
    assert version(1, **change).restart_fingerprint != version(1).restart_fingerprint


def test_serve_lost_an_application(world):
    world.deploy(1)
    world.settle()
    world.seen.clear()
    assert [type(action) for action in world.decide()] == [Apply]
    world.step()
    assert world.states == {1: "starting"}
    world.settle()
    assert world.states == {1: "ready"}


def test_an_application_that_nobody_asked_for_ends_and_others_are_not_ours(world):
    world.seen = {"m--old--v1": RUNNING, "ingress": RUNNING, "somebody-elses": RUNNING, "m--x--v2": DELETING}
    assert world.decide() == [Delete("m--old--v1")]


def test_undeploy_of_the_default_leaves_the_highest_that_works(world):
    for number in (1, 2, 3):
        world.deploy(number, default=number == 3)
        world.settle()
    world.drained = {V1, V2, V3}
    assert world.undeploy(3) == [3]
    assert (world.service.default, world.service.wanted) == (2, 2)
    world.settle()
    assert world.undeploy() == [1, 2]
    world.settle()
    assert world.record.services == {}
    assert world.seen == {}
    assert world.record.is_settled


def test_a_retired_version_comes_back_before_it_has_ended(world):
    world.deploy(1)
    world.settle()
    world.undeploy()
    world.deploy(1)
    assert world.states == {1: "ready"}
    assert world.decide() == []


def test_a_version_that_is_ending_starts_anew_when_it_has_ended(world):
    world.deploy(1)
    world.settle()
    world.undeploy()
    world.drained = {V1}
    world.step()
    world.deploy(1)
    assert world.states == {1: "starting"}
    assert world.decide() == []
    del world.seen[V1]
    assert "Apply" in world.settle()
    assert world.states == {1: "ready"}


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("letters", None, r"no model 'letters' is deployed; deployed: digits"),
        ("digits", 7, r"version 7 of model 'digits' is not deployed; deployed: 1"),
    ],
)
def test_undeploy_of_what_is_not_there(world, name, number, message):
    world.deploy(1)
    with pytest.raises(ModelNotFound, match=message):
        services.undeploy(world.record, name, number, NOW)


def test_every_state_on_the_way_survives_the_disk(world):
    world.deploy(1)
    world.settle()
    world.deploy(2)
    world.settle()
    world.deploy(3, default=False)
    world.step()
    keys, _, _ = world.record.keys.create("app", ["infer"])
    record = dataclasses.replace(world.record, keys=keys, revision=7)
    assert record.retiring
    assert record.applied
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_record_of_before_a_setting_went_is_read(world):
    world.deploy(1)
    values = json.loads(json.dumps(world.record.to_json()))
    values["services"]["digits"]["versions"][0]["spec"]["batch_wait_s"] = 0.005
    assert Record.from_json(values) == world.record


def test_routes_carry_what_the_ingress_needs(world):
    world.deploy(1, max_queued_requests=5)
    world.settle()
    routes = dataclasses.replace(world.record, revision=4).routes()
    target = routes.resolve("digits")
    assert (routes.generation, target.app, target.state, target.max_queued) == (4, V1, "ready", 5)


def test_the_reason_of_a_failure_is_our_own_error():
    text = """The deployment failed to start 2 times in a row. Error:
ray::ServeReplica:m--digits--v2:Model.initialize() (pid=12)
  File "replica.py", line 1, in initialize
RuntimeError: Traceback (most recent call last):
  File "model_app.py", line 3, in __init__
eagleray.errors.PackageError: /models/2: weights.safetensors
 does not match; publish it again

"""
    assert our_error(text) == "/models/2: weights.safetensors does not match; publish it again"
    assert our_error("out of  memory\n") is None


def test_what_may_have_been_the_nodes_fault_is_tried_again(world):
    world.deploy(1)
    world.step()
    for _ in range(2):
        world.seen[V1] = Seen("failed", "The actor died: its node was lost")
        assert world.step() == ["Retry"]
        world.seen[V1] = DELETING
        assert world.decide() == []
        del world.seen[V1]
        assert world.step() == ["Apply"]
    world.seen[V1] = Seen("failed", "The actor died:\n its node was lost")
    assert world.decide() == [Fail("digits", 1, "The actor died: its node was lost")]


@pytest.mark.parametrize(
    ("message", "trouble"),
    [
        ("", None),
        ("Upscaling from 0 to 1 replicas.", None),
        (
            "A replica failed to start with exception. Retrying. Error:\nOSError: no space left",
            (1, "OSError: no space left", False),
        ),
        (
            "The deployment failed to start 2 times in a row. Error:\n…\n"
            "eagleray.errors.PackageError: code/net.py is missing",
            (2, "code/net.py is missing", True),
        ),
        ("The deployment failed to start 3 times in a row. Error:\nOSError", (3, "OSError", True)),
    ],
)
def test_a_version_that_has_answered_and_whose_replica_does_not_start(message, trouble):
    world = World()
    world.deploy(1, min_replicas=0)
    world.seen = {V1: Seen("deploying", message)}
    assert ailing(world.record, world.seen) == {}, "of its first replica `decide` says all"
    world.seen = {}
    world.settle()
    world.seen[V1] = Seen("deploying", message)
    found = ailing(world.record, world.seen).get(V1)
    if trouble is None:
        assert found is None
        return
    tries, reason, is_final = trouble
    assert found is not None
    assert (found.tries, found.is_final) == (tries, is_final)
    assert found.reason.endswith(reason)
    assert Record.from_json(dataclasses.replace(world.record, ailing={V1: found}).to_json()).ailing == {}
