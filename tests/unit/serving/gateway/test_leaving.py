"""What the kernel does for a listener that is about to leave its port, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.serving.gateway import leaving, listening
from eagleray.serving.gateway.listening import Place

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs of Linux's kernel")


@pytest.fixture
def places(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Place]]:
    """Four gateways' places on one port, of the address that a test may choose."""
    host = getattr(request, "param", "127.0.0.1")
    found = [listening.listen(host, 0, tmp_path)]
    found += [listening.listen(host, port_of(found[0]), tmp_path) for _ in range(3)]
    yield found
    for place in found:
        place.leave()


def port_of(place: Place) -> int:
    return place.listener.getsockname()[1]


def connections(places: list[Place], number: int = 120) -> list[int]:
    """How many of so many connections come to each place. Raises: TimeoutError if one is not made at once."""
    address = places[-1].listener.getsockname()
    for _ in range(number):
        with socket.socket(places[-1].listener.family) as sock:
            sock.settimeout(0.5)
            sock.connect(address)
    return [taken(place) for place in places]


def taken(place: Place) -> int:
    found = 0
    try:
        while True:
            place.accept().close()
            found += 1
    except OSError:  # there is none, or it is closed
        return found


@pytest.mark.parametrize("places", ["127.0.0.1", "::1", "0.0.0.0", "::"], indirect=True)
@pytest.mark.parametrize("index", range(4))
def test_new_connections_come_to_the_others(places: list[Place], index: int) -> None:
    asyncio.run(places[index].begin_no_more())
    for place in places:
        taken(place)  # those that showed its place
    found = connections(places)
    assert found[index] == 0
    assert all(number > 10 for place, number in enumerate(found) if place != index), "evenly"


def test_when_it_has_left_the_kernel_chooses_among_those_that_are_there(places: list[Place]) -> None:
    asyncio.run(places[1].begin_no_more())
    places[1].leave()
    rest = [places[0], *places[2:]]
    for place in rest:
        taken(place)
    found = connections(rest)
    assert sum(found) == 120
    assert all(found)


def test_those_that_leave_at_once_leave_one_after_another(places: list[Place]) -> None:
    async def leave(place: Place) -> None:
        await place.begin_no_more()
        assert place.turn is not None
        await asyncio.to_thread(connections, places[2:], 20)  # each is made at once
        place.leave()

    async def leave_both() -> None:
        await asyncio.gather(leave(places[0]), leave(places[1]))

    asyncio.run(leave_both())


def test_one_that_was_killed_as_it_left_does_not_keep_connections_from_others(
    places: list[Place], tmp_path: Path
) -> None:
    asyncio.run(places[0].begin_no_more())
    places[0].listener.close()
    successor = listening.listen("127.0.0.1", port_of(places[1]), tmp_path)
    for place in places[1:]:
        taken(place)
    found = connections([*places[1:], successor])
    assert all(number > 10 for number in found)
    successor.leave()


def test_a_kernel_without_such_programs_goes_on_as_before(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(leaving, "_attach", refuse)
    asyncio.run(places[0].begin_no_more())
    assert sum(connections(places)) == 120


def test_what_was_made_before_is_kept_and_first_packets_are_passed_over(tmp_path: Path) -> None:
    """A gateway without others on its port."""
    place = listening.listen("127.0.0.1", 0, tmp_path)
    earlier = socket.create_connection(("127.0.0.1", port_of(place)))
    asyncio.run(place.begin_no_more())
    with socket.socket() as later:
        later.settimeout(0.05)
        with pytest.raises(TimeoutError):
            later.connect(("127.0.0.1", port_of(place)))
    mine = place.accept()
    place.leave()
    mine.setblocking(True)
    with earlier, mine:
        earlier.sendall(b"asked")
        assert mine.recv(5) == b"asked"
        mine.sendall(b"answered")
        assert earlier.recv(8) == b"answered"


@pytest.mark.slow
def test_a_connection_that_is_begun_is_completed(tmp_path: Path) -> None:
    """Its client does not hear of it until the kernel says so again, after a second."""
    place = listening.listen("127.0.0.1", 0, tmp_path)
    with socket.socket() as client:
        leaving._attach(client, leaving._ATTACH_FILTER, (leaving._RETURN, 0, 0, leaving._NONE))
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port_of(place)))
        asyncio.run(place.begin_no_more())
        leaving.clear(client)
        client.settimeout(10)
        deadline = time.monotonic() + 10
        while not (mine := accepted(place)):
            assert time.monotonic() < deadline, "not completed"
            time.sleep(0.01)
        place.leave()
        mine.setblocking(True)
        with mine:
            mine.sendall(b"answered")
            assert client.recv(8) == b"answered"
            with pytest.raises(FileNotFoundError):  # the filter is off it
                mine.setsockopt(socket.SOL_SOCKET, leaving._DETACH_FILTER, 0)


def accepted(place: Place) -> socket.socket | None:
    try:
        return place.accept()
    except BlockingIOError:
        return None
