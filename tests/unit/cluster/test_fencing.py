"""When a host counts as cut off: a table, and real sockets for what is a sign of life."""

import errno
import socket
from contextlib import closing

import pytest

from eagleray.cluster.fencing import Contact, hears


@pytest.mark.parametrize(
    ("answers", "is_lost"),
    [
        ([], False),
        ([(1.0, True), (30.0, True)], False),
        ([(1.0, False), (2.0, False), (2.9, False)], False),
        ([(1.0, False), (2.0, False), (3.0, False)], True),
        ([(1.0, False), (2.0, False), (2.5, True), (5.4, False)], False),
        # The host itself stood still: two questions say nothing of the network.
        ([(60.0, False)], False),
        ([(60.0, False), (61.0, False)], False),
        ([(60.0, False), (61.0, False), (62.0, False)], True),
    ],
)
def test_a_host_is_cut_off_when_nobody_has_answered_for_long_enough(answers, is_lost):
    contact, now_s = Contact(0.0), 0.0
    for now_s, heard in answers:
        contact = contact.after(heard, now_s)
    assert contact.is_lost(now_s, 3.0) == is_lost


def test_a_machine_that_refuses_or_does_not_get_to_it_is_there():
    with closing(socket.create_server(("127.0.0.1", 0))) as busy:  # nobody accepts: a GCS that hangs
        address = busy.getsockname()
        assert hears(address, 1.0)
    assert hears(address, 1.0)  # refused: a GCS that is being restarted


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), OSError(errno.EHOSTUNREACH, "no route"), socket.gaierror("no name server either")],
)
def test_a_machine_that_cannot_be_reached_is_not(error, monkeypatch):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    assert not hears(("head", 6379), 0.01)
