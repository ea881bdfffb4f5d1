"""A run's seats and workers when nodes or processes end while the workers start; Ray itself is played."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.util.placement_group import PlacementGroup

from eagleray.errors import TrainingError
from eagleray.training import reservation_ray260
from eagleray.training.reservation_ray260 import MAX_DEATHS_AT_START, Reservation


class PlayedRay:
    """What `take_actors` asks of Ray: each `get` takes the next outcome, and may end a node."""

    def __init__(self, outcomes, nodes=("head", "other")):
        self.outcomes, self.alive, self.killed, self.num_made = list(outcomes), list(nodes), [], 0

    def nodes(self):
        return [{"NodeID": name, "Alive": name in self.alive} for name in ("head", "other", "new")]

    def get(self, refs):
        outcome = self.outcomes.pop(0)
        if outcome == "node lost":
            self.alive.remove("other")
        if isinstance(outcome, Exception) or outcome in ("node lost", "process ended"):
            raise outcome if isinstance(outcome, Exception) else ActorDiedError()
        return refs

    def kill(self, actor):
        self.killed.append(actor.name)

    def create(self, group, bundle, count):
        self.num_made += 1
        remote = SimpleNamespace(remote=lambda: "metadata")
        return [SimpleNamespace(name=f"{self.num_made}.{n}", get_metadata=remote) for n in range(count)]


class PlayedGroup:
    def __init__(self):
        self.num_waits = 0

    def wait(self):
        self.num_waits += 1
        return True


@pytest.fixture
def play(monkeypatch):
    def start(*outcomes):
        played, said = PlayedRay(outcomes), []
        monkeypatch.setattr(reservation_ray260, "ray", played)
        monkeypatch.setattr(reservation_ray260, "create_actors", played.create)
        reservation = Reservation.__new__(Reservation)
        reservation.bundle, reservation.count = {"CPU": 1.0}, 2
        reservation.group = PlayedGroup()  # type: ignore[assignment]
        reservation._say, reservation._every_s, reservation._tell_after_s = said.append, 5.0, 5.0
        reservation.actors = reservation._made = played.create(None, {}, 2)
        return reservation, played, said

    return start


def names(taken):
    assert all(metadata == "metadata" for _, metadata in taken)
    return [actor.name for actor, _ in taken]


def test_workers_made_ahead_are_taken_once(play):
    reservation, played, said = play("fine", "fine")
    assert names(reservation.take_actors()) == ["1.0", "1.1"]
    assert names(reservation.take_actors()) == ["2.0", "2.1"]
    assert (said, reservation.group.num_waits) == ([], 0)
    assert played.killed == ["1.0", "1.1"], (
        "what was taken before holds the seats, if its group did not start"
    )


def test_releasing_ends_the_workers_that_are_left(play, monkeypatch):
    reservation, played, _ = play()
    monkeypatch.setattr(reservation_ray260, "remove_placement_group", lambda _: played.killed.append("group"))
    reservation.release()
    assert played.killed == ["1.0", "1.1", "group"]


def test_a_node_that_dies_while_workers_start_is_waited_for(play):
    reservation, played, said = play("node lost", "fine")
    assert names(reservation.take_actors()) == ["2.0", "2.1"]
    assert [actor.name for actor in reservation._made] == ["2.0", "2.1"]
    assert played.killed == ["1.0", "1.1"]
    assert reservation.group.num_waits == 1
    assert said == ["a worker was lost while it started (its node was lost); starting the workers again"]


def test_workers_that_end_again_and_again_end_the_run(play):
    reservation, played, said = play(*["process ended"] * MAX_DEATHS_AT_START)
    with pytest.raises(
        TrainingError, match=f"ended while they started, {MAX_DEATHS_AT_START} times: The actor"
    ):
        reservation.take_actors()
    assert len(played.killed) == 2 * MAX_DEATHS_AT_START
    assert set(said) == {"a worker was lost while it started (its process ended); starting the workers again"}


def test_a_worker_whose_constructor_raises_is_not_made_again(play):
    failed = RayActorError(actor_init_failed=True)
    reservation, _, said = play(failed)
    with pytest.raises(TrainingError, match="a worker cannot start: The actor experienced") as caught:
        reservation.take_actors()
    assert caught.value.__cause__ is failed
    assert said == []


def test_waiting_is_said_at_intervals_that_double_up_to_a_minute(play):
    reservation, _, said = play()
    for second in range(300):
        reservation._tell(float(second))
    assert [line.split(": ")[1].split(" ")[0] for line in said] == [
        "5",
        "10",
        "20",
        "40",
        "80",
        "140",
        "200",
        "260",
    ]
    assert said[0] == "waiting for 2 x (1 CPU): 5 s; a node is starting, busy or missing"


def test_seats_wait_as_rays_placement_group_does():
    theirs, ours = (inspect.signature(cls.wait) for cls in (PlacementGroup, reservation_ray260.Seats))
    assert list(theirs.parameters) == list(ours.parameters)
    assert list(inspect.signature(PlacementGroup).parameters) == ["id", "bundle_cache"]
