"""A run's seats and workers when nodes or processes end while the workers start; Ray itself is played."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError

from eagleray.errors import TrainingError
from eagleray.training import reservation_ray260, seat_ray260
from eagleray.training.reservation_ray260 import MAX_DEATHS_AT_START, Reservation
from eagleray.training.stopping import Suspended


class PlayedRay:
    """What a reservation asks of Ray: each `get` takes the next outcome, and may end a node."""

    def __init__(self, outcomes, nodes=("head", "other")):
        self.outcomes, self.alive, self.killed, self.removed = list(outcomes), list(nodes), [], []
        self.groups, self.placed, self.num_made, self.given = [], None, 0, []
        self.is_out = threading.Event()
        self.asked = lambda what: None

    def nodes(self):
        return [{"NodeID": name, "Alive": name in self.alive} for name in ("head", "other", "new")]

    def get(self, refs, timeout=None):
        outcome = self.outcomes.pop(0)
        if outcome == "node lost":
            self.alive.remove("other")
        if isinstance(outcome, Exception) or outcome in ("node lost", "process ended"):
            raise outcome if isinstance(outcome, Exception) else ActorDiedError()
        return refs

    def kill(self, actor):
        self.asked("kill")
        self.killed.append(actor.name)

    def create(self, seat, bundle):
        self.num_made += 1
        remote = SimpleNamespace(remote=lambda: "metadata")
        return SimpleNamespace(name=f"{self.num_made}@{seat.group.id}.{seat.index}", get_metadata=remote)

    def placement_group(self, bundles, *, strategy, bundle_label_selector, name):
        self.asked("placement_group")
        group = SimpleNamespace(
            id=f"g{len(self.groups)}", bundles=bundles, selector=bundle_label_selector, name=name
        )
        self.groups.append(group)
        return group

    def remove(self, group):
        self.asked("remove_placement_group")
        self.removed.append(group.id)

    def table(self, group):
        self.asked("placement_group_table")
        is_placed = self.placed is None or group.id in self.placed
        return {"state": "CREATED" if is_placed else "PENDING"}


def play_ray(monkeypatch, played):
    """Have reservations ask `played` in place of Ray."""
    monkeypatch.setattr(reservation_ray260, "ray", played)
    monkeypatch.setattr(reservation_ray260, "create_actor", played.create)
    monkeypatch.setattr(reservation_ray260, "placement_group", played.placement_group)
    monkeypatch.setattr(seat_ray260, "placement_group_table", played.table)
    monkeypatch.setattr(reservation_ray260, "remove_placement_group", played.remove)
    monkeypatch.setattr(reservation_ray260, "GRACE_S", 0.05)
    monkeypatch.setattr(reservation_ray260, "PLACED_EVERY_S", 0.01)


@pytest.fixture
def play(monkeypatch):
    def start(*outcomes, count=2, minimum=None, placed=None, units=None, spares=0):
        played, said = PlayedRay(outcomes), []
        played.placed = placed
        play_ray(monkeypatch, played)
        claim = None if units is None else "run-7"
        reservation = Reservation({"CPU": 1.0}, count, {}, minimum, spares=spares, claim=claim)
        reservation.gave_back = lambda seat: played.given.append(seat.node)
        if units is not None:
            reservation.allot(units)
        reservation.wait(said.append)
        return reservation, played, said

    return start


def close(reservation, seat):
    """Close a seat, and wait until Ray has been told."""
    reservation.close(seat)
    for thread in reservation._closing:
        thread.join(20)


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
    assert reservation.seats == []


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
    close(reservation, second)
    assert (played.killed, played.removed) == (["2@g1.0"], ["g1"])
    assert [seat.group.id for seat in reservation.vacant(1)] == []
    assert [seat.group.id for seat in reservation.vacant(1)] == ["g2"]
    assert reservation.seats[0] is first


def can_be_had(lock):
    """Whether another thread gets it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: lock.acquire(timeout=0.2) and not lock.release()).result()


def asks_of(reservation, played):
    """What Ray is asked from now on, and whether the lock could be had meanwhile."""
    asks = set()
    played.asked = lambda what: asks.add((what, can_be_had(reservation._lock)))
    return asks


def test_ray_is_asked_for_seats_without_the_lock(play):
    reservation, played, _ = play("fine", count=2, minimum=1)
    _, second = (seat for seat, _ in reservation.take_actors())
    asks = asks_of(reservation, played)
    close(reservation, second)
    reservation.vacant(1)
    reservation.vacant(1)
    whats = ("kill", "remove_placement_group", "placement_group", "placement_group_table")
    assert asks == {(what, True) for what in whats}


def test_who_closes_a_seat_does_not_wait_for_ray_but_who_releases_all_does(play):
    reservation, played, _ = play("fine", count=3, minimum=1, units={"a": 3})
    _, second, third = (seat for seat, _ in reservation.take_actors())
    is_back = threading.Event()
    played.asked = lambda what: what != "kill" or is_back.wait(20)  # the GCS is away
    second.is_leaving = True
    reservation.close(second)
    reservation.close(third)
    assert (second.actor, third.actor, played.killed, played.given) == (None, None, [], [])
    assert second not in reservation.seats, "it is not closed twice"
    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(reservation.release)
        assert not released.done()
        is_back.set()
        released.result(20)
    assert sorted(played.killed) == ["1@g0.0", "2@g1.0", "3@g2.0"]
    assert (sorted(played.removed), played.given) == (["g0", "g1", "g2"], ["a"])


def test_a_seat_that_cannot_be_given_back_is_told(play):
    reservation, played, said = play("fine", count=2, minimum=1)
    _, second = (seat for seat, _ in reservation.take_actors())

    def refuse(what):
        if what == "kill":
            raise RayActorError

    played.asked = refuse
    close(reservation, second)
    assert played.removed == ["g1"], "its resources are free nevertheless"
    assert said[0].startswith("a worker's seat could not be given back (")


def test_ray_is_asked_for_what_is_allotted_without_the_lock(play):
    reservation, played, _ = play("fine", count=2, minimum=1, units={"a": 3})
    reservation.take_actors()
    asks = asks_of(reservation, played)
    reservation.allot({"a": 1, "b": 1}, leave_by=time.monotonic() + 9.0)
    reservation.disband()
    assert asks == {(what, True) for what in ("kill", "remove_placement_group", "placement_group")}
    assert [seat.node for seat in reservation.seats] == ["a", "b"]


def test_a_seat_that_is_asked_for_while_the_run_ends_is_not_left_behind(play):
    reservation, played, _ = play("fine", count=1, minimum=1, spares=1)
    reservation.take_actors()
    played.asked = lambda what: what == "placement_group" and reservation.release()
    reservation.vacant(2)
    assert (sorted(played.removed), reservation.seats) == (["g0", "g1", "g2"], [])


def test_a_seat_among_others_stays_when_its_worker_ends(play):
    reservation, played, _ = play("fine")
    _, second = (seat for seat, _ in reservation.take_actors())
    close(reservation, second)
    assert played.removed == []
    assert reservation.vacant(1) == [second]


def test_a_node_that_dies_while_workers_start_is_waited_for(play):
    reservation, played, said = play("node lost", "fine")
    assert names(reservation.take_actors()) == ["3@g0.0", "4@g0.1"]
    assert played.killed == ["1@g0.0", "2@g0.1"]
    assert said == ["a worker was lost while it started (its node was lost); starting the workers again"]


def test_a_worker_that_stops_while_it_starts_is_not_waited_for_for_ever(play):
    reservation, played, said = play(GetTimeoutError("not ready"), "fine")
    assert names(reservation.take_actors()) == ["3@g0.0", "4@g0.1"]
    assert played.killed == ["1@g0.0", "2@g0.1"]
    assert said == [
        "a worker was lost while it started (it was not up within 300 s); starting the workers again"
    ]


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
        reservation.tell(float(second))
    assert [line.split(": ")[1].split(" ")[0] for line in said] == [
        "5", "10", "20", "40", "80", "140", "200", "260",
    ]  # fmt: skip
    assert said[0] == "waiting for 2 x (1 CPU): 5 s; a node is starting, busy or missing"
    for second in range(7):  # another wait
        reservation.tell(float(second))
    assert said[8:] == ["waiting for 2 x (1 CPU): 5 s; a node is starting, busy or missing"]


def test_a_spare_has_a_seat_and_does_not_train_at_first(play):
    reservation, played, _ = play("fine", count=2, spares=1)
    assert [group.bundles for group in played.groups] == [[{"CPU": 1.0}]] * 3
    assert names(reservation.take_actors()) == ["1@g0.0", "2@g1.0"]
    assert [seat.group.id for seat in reservation.vacant(1)] == ["g2"]


def test_a_run_that_waits_for_its_spare_begins_without_it(play):
    reservation, _, _ = play("fine", count=2, spares=1, placed={"g0", "g1"})
    assert names(reservation.take_actors()) == ["1@g0.0", "2@g1.0"]


def test_seats_of_a_claim_lie_where_they_were_allotted_and_carry_its_name(play):
    reservation, played, _ = play("fine", count=3, minimum=1, units={"a": 2, "b": 1})
    assert [group.selector for group in played.groups] == [
        [{"ray.io/node-id": node}] for node in ("a", "a", "b")
    ]
    assert all(group.name.startswith("eagleray-claim:run-7:") for group in played.groups)
    assert len({group.name for group in played.groups}) == 3
    assert names(reservation.take_actors()) == ["1@g0.0", "3@g1.0", "2@g2.0"], "one of each node first"
    assert reservation.used() == {"a": 2, "b": 1}
    reservation.vacant(2)
    assert len(played.groups) == 3, "no more than it was allotted"


def test_more_units_are_more_seats_and_what_is_not_there_yet_is_not_used(play):
    reservation, played, _ = play("fine", count=3, minimum=1, units={"a": 1})
    reservation.take_actors()
    played.placed = {"g0"}
    reservation.allot({"a": 1, "b": 1})
    assert reservation.vacant(2) == []
    assert reservation.used() == {"a": 1}
    played.placed = None
    assert [seat.node for seat in reservation.vacant(2)] == ["b"]
    assert reservation.used() == {"a": 1, "b": 1}


def test_fewer_units_take_what_does_not_train_at_once_and_leave_the_rest_to_its_ranks(play):
    reservation, played, _ = play("fine", count=2, minimum=1, units={"a": 3})
    (first, second), spare = (seat for seat, _ in reservation.take_actors()), reservation.seats[2]
    reservation.spawn(spare)
    reservation.allot({"a": 1}, leave_by=99.5, reason="a service needs it")
    assert reservation.leave_by == 99.5
    assert (played.killed, played.removed, played.given) == (["3@g2.0"], ["g2"], ["a"])
    assert [seat.is_leaving for seat in (first, second)] == [False, True]
    close(reservation, second)
    assert (played.removed, played.given) == (["g2", "g1"], ["a", "a"])
    assert reservation.seats == [first]


def test_what_is_withdrawn_in_time_stays(play):
    reservation, played, _ = play("fine", count=2, minimum=1, units={"a": 2})
    seats = [seat for seat, _ in reservation.take_actors()]
    reservation.allot({"a": 1}, leave_by=time.monotonic() + 9.0)
    reservation.allot({"a": 2})
    assert [seat.is_leaving for seat in seats] == [False, False]
    assert (reservation.leave_by, played.removed) == (None, [])


def test_a_worker_that_ends_leaves_its_seat_to_another_on_the_same_node(play):
    reservation, played, _ = play("fine", count=2, minimum=1, units={"a": 1, "b": 1})
    _, second = (seat for seat, _ in reservation.take_actors())
    close(reservation, second)
    assert (played.killed, played.removed, played.given) == (["2@g1.0"], [], [])
    assert reservation.vacant(1) == [second]


def test_workers_whose_seats_go_while_they_start_do_not_start_the_others_anew(play):
    reservation, played, said = play(ActorDiedError(), "fine", count=2, minimum=1, units={"a": 1, "b": 1})
    get = played.get

    def get_and_take_one(refs, timeout=None):
        if len(refs) == 2:
            reservation.allot({"a": 1}, leave_by=time.monotonic() + 9.0)
        return get(refs)

    played.get = get_and_take_one
    assert names(reservation.take_actors()) == ["1@g0.0"]
    assert (played.killed, played.given, said) == (["2@g1.0"], ["b"], [])


def test_a_suspension_before_the_workers_train_ends_the_waiting(play):
    reservation, played, _ = play(count=2, minimum=1, units={"a": 1, "b": 1})
    reservation.allot(
        {}, leave_by=time.monotonic() + 9.0, is_suspension=True, reason="floor of a service needs it"
    )
    assert sorted(played.given) == ["a", "b"]
    with pytest.raises(Suspended, match="floor of a service"):
        reservation.take_actors()


def test_what_is_refused_is_not_waited_for(play):
    reservation, _, _ = play("fine", count=1, units={"a": 1})
    refused = TrainingError("refused")

    def check():
        raise refused

    reservation.allot({})
    reservation.check = check
    with pytest.raises(TrainingError, match="refused"):
        reservation.await_seats()
