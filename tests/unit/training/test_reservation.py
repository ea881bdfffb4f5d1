"""A run's seats and workers when nodes or processes end while the workers start; Ray itself is played."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayActorError

from eagleray.errors import TrainingError
from eagleray.training import reservation_ray260
from eagleray.training.reservation_ray260 import MAX_DEATHS_AT_START, Reservation


class PlayedRay:
    """What a reservation asks of Ray: each `get` takes the next outcome, and may end a node."""

    def __init__(self, outcomes, nodes=("head", "other")):
        self.outcomes, self.alive, self.killed, self.removed = list(outcomes), list(nodes), [], []
        self.groups, self.placed, self.num_made = [], None, 0
        self.is_out = threading.Event()

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

    def create(self, seat, bundle):
        self.num_made += 1
        remote = SimpleNamespace(remote=lambda: "metadata")
        return SimpleNamespace(name=f"{self.num_made}@{seat.group.id}.{seat.index}", get_metadata=remote)

    def placement_group(self, bundles, *, strategy, bundle_label_selector):
        group = SimpleNamespace(id=f"g{len(self.groups)}", bundles=bundles, selector=bundle_label_selector)
        self.groups.append(group)
        return group

    def table(self, group):
        is_placed = self.placed is None or group.id in self.placed
        return {"state": "CREATED" if is_placed else "PENDING"}


@pytest.fixture
def play(monkeypatch):
    def start(*outcomes, count=2, minimum=None, placed=None):
        played, said = PlayedRay(outcomes), []
        played.placed = placed
        monkeypatch.setattr(reservation_ray260, "ray", played)
        monkeypatch.setattr(reservation_ray260, "create_actor", played.create)
        monkeypatch.setattr(reservation_ray260, "placement_group", played.placement_group)
        monkeypatch.setattr(reservation_ray260, "placement_group_table", played.table)
        monkeypatch.setattr(
            reservation_ray260, "remove_placement_group", lambda g: played.removed.append(g.id)
        )
        monkeypatch.setattr(reservation_ray260, "GRACE_S", 0.05)
        monkeypatch.setattr(reservation_ray260, "PLACED_EVERY_S", 0.01)
        reservation = Reservation({"CPU": 1.0}, count, {}, minimum)
        reservation.wait(said.append)
        return reservation, played, said

    return start


def names(taken):
    assert all(metadata == "metadata" for _, metadata in taken)
    return [seat.actor.name for seat, _ in taken]


def test_workers_made_ahead_are_taken_once(play):
    reservation, played, said = play("fine", "fine")
    assert names(reservation.take_actors()) == ["1@g0.0", "2@g0.1"]
    assert names(reservation.take_actors()) == ["3@g0.0", "4@g0.1"]
    assert said == []
    assert played.killed == ["1@g0.0", "2@g0.1"], (
        "what was taken before holds the seats, if its group did not start"
    )


def test_releasing_ends_the_workers_that_are_left(play):
    reservation, played, _ = play()
    reservation.release()
    assert (played.killed, played.removed) == (["1@g0.0", "2@g0.1"], ["g0"])


def test_a_run_of_a_fixed_size_has_one_group_that_ray_spreads(play):
    _, played, _ = play()
    assert [group.bundles for group in played.groups] == [[{"CPU": 1.0}] * 2]


def test_a_run_that_may_shrink_begins_with_what_is_placed(play):
    reservation, played, _ = play("fine", count=3, minimum=1, placed={"g0", "g2"})
    assert [group.bundles for group in played.groups] == [[{"CPU": 1.0}]] * 3
    assert names(reservation.take_actors()) == ["1@g0.0", "2@g2.0"]
    assert reservation.vacant(1) == [], "its seat is asked for, and not there yet"
    played.placed = None
    (seat,) = reservation.vacant(1)
    assert seat.group.id == "g1"


def test_a_seat_of_its_own_is_given_back_and_another_is_asked_for(play):
    reservation, played, _ = play("fine", count=2, minimum=1)
    first, second = (seat for seat, _ in reservation.take_actors())
    reservation.close(second)
    assert (played.killed, played.removed) == (["2@g1.0"], ["g1"])
    assert [seat.group.id for seat in reservation.vacant(1)] == []
    assert [seat.group.id for seat in reservation.vacant(1)] == ["g2"]
    assert reservation.seats[0] is first


def test_a_seat_among_others_stays_when_its_worker_ends(play):
    reservation, played, _ = play("fine")
    _, second = (seat for seat, _ in reservation.take_actors())
    reservation.close(second)
    assert played.removed == []
    assert reservation.vacant(1) == [second]


def test_a_node_that_dies_while_workers_start_is_waited_for(play):
    reservation, played, said = play("node lost", "fine")
    assert names(reservation.take_actors()) == ["3@g0.0", "4@g0.1"]
    assert played.killed == ["1@g0.0", "2@g0.1"]
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
        "5", "10", "20", "40", "80", "140", "200", "260",
    ]  # fmt: skip
    assert said[0] == "waiting for 2 x (1 CPU): 5 s; a node is starting, busy or missing"
