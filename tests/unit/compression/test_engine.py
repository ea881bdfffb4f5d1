"""The engine's thread, over a process group that keeps what is sent until somebody lets it go."""

import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch.futures import Future

from eagleray import groups
from eagleray.compression import engine
from eagleray.compression.engine import Engine
from eagleray.compression.jobs import Job
from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.wire import Step
from eagleray.errors import PeerLost
from eagleray.groups import making


class Link:
    """A process group's end that only sends; a send is over when the link is open."""

    def __init__(self):
        self.is_open = threading.Event()
        self.num_done = 0

    def send(self, tensors, to, tag):
        return self

    def wait(self):
        if not self.is_open.wait(60):
            raise RuntimeError("nobody has let it go")
        self.num_done += 1


class Tells:
    """A compressor whose ranks tell each other something, and do not listen."""

    name, keeps_dtype, is_lossy = "tells", True, False

    def bind(self, layout, wire, memory):
        self.wire = wire

    def plan(self, bucket, device):
        self.messages = [None, self.wire.message(8)]
        return self

    def run(self, gradient, step):
        for stage in range(3):
            self.wire.swap(step, stage, self.messages, [None, None])
        yield
        return -1


def begun(link):
    """An engine that has exchanged one bucket over the link."""
    layout = Layout([("w", (4, 4))], world_size=2)
    group = groups.Group("link", link, 0, 2, "gloo")
    made = Engine(Tells(), group, layout, Memory(layout, torch.device("cpu")))
    job = Job(Bucket.packed(layout.places.values()), torch.zeros(16), Step(1, 0), Future())
    made.submit(job)
    job.future.wait()
    assert job.failure is None
    return made


@pytest.fixture
def broken(monkeypatch):
    """How often groups were broken; that also ends what is on the link."""
    calls = []
    monkeypatch.setattr(groups, "break_groups", lambda: calls.append(1))
    return calls


class Stream:
    """A CUDA stream on a machine without one: which is the current one."""

    current = None

    def __init__(self, device):
        self.waited_for = []

    def wait_event(self, event):
        self.waited_for.append(event)

    @contextmanager
    def entered(self):
        before, Stream.current = Stream.current, self
        yield
        Stream.current = before


def test_on_cuda_buffers_are_made_on_the_stream_that_uses_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Stream.entered)
    found = []

    class Looks(Tells):
        def plan(self, bucket, device):
            found.append(("plan", Stream.current.waited_for[:]))
            return self

        def run(self, gradient, step):
            found.append(("run", Stream.current.waited_for[:]))
            yield
            found.append(("end", Stream.current.waited_for[:]))
            return -1

    layout = Layout([("w", (4, 4))], world_size=1)
    group = groups.Group("alone", None, 0, 1, "nccl")
    made = Engine(Looks(), group, layout, Memory(layout, torch.device("cpu")))
    for number in (1, 2):
        job = Job(
            Bucket.packed(layout.places.values()),
            torch.zeros(16),
            Step(number, 0),
            Future(),
            ready=f"gradient {number}",
        )
        made.submit(job)
        assert job.future.done()
    both = ["gradient 1", "gradient 2"]
    assert found == [("plan", both[:1]), ("run", both[:1]), ("end", both[:1]), ("run", both), ("end", both)]


def test_what_the_last_step_sent_is_on_its_way_before_the_engine_ends(broken):
    link = Link()
    made = begun(link)
    assert link.num_done == 0, "a step does not wait for its own sends"
    threading.Timer(0.1, link.is_open.set).start()
    made.close()
    assert link.num_done == 3
    assert not broken
    made.close()


def test_a_peer_that_takes_nothing_is_not_waited_for(broken, monkeypatch):
    monkeypatch.setattr(engine, "_JOIN_S", 0.05)
    monkeypatch.setattr(engine, "_SETTLE_S", 0.05)
    link = Link()
    made = begun(link)
    made.close()
    assert broken == [1]
    link.is_open.set()


def test_the_peers_of_a_broken_group_are_not_waited_for(broken, monkeypatch):
    monkeypatch.setattr(engine, "_JOIN_S", 0.05)
    monkeypatch.setattr(engine.groups, "are_broken", lambda: True)
    link = Link()
    made = begun(link)
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < 2, "a host that was cut off takes nothing, and says nothing"
    link.is_open.set()


def test_a_peer_that_has_gone_is_no_failure(broken):
    link = Link()
    made = begun(link)
    link.wait = lambda: (_ for _ in ()).throw(RuntimeError("Connection closed by peer"))
    made.close()
    assert not broken


class Hears(Tells):
    """And they listen."""

    name = "hears"

    def run(self, gradient, step):
        heard = self.wire.swap(step, 0, self.messages, [None, self.wire.message(8)])
        yield
        heard.wait()
        return -1


@pytest.fixture
def forgotten(monkeypatch):
    """An engine that waits for a receive, in a group that has been broken without waking it; and its link."""

    def make(compressor):
        link = Link()
        link.recv = link.send
        layout = Layout([("w", (4, 4))], world_size=2)
        group = groups.Group("forgotten", link, 0, 2, "gloo")
        monkeypatch.setattr(making, "_open_groups", [group])
        return Engine(compressor, group, layout, Memory(layout, torch.device("cpu"))), link

    yield make
    making._broken_since.clear()
    making._listeners.clear()


def job_of(made, number=1):
    return Job(Bucket.packed(made.layout.places.values()), torch.zeros(16), Step(number, 0), Future())


def test_what_gloo_forgets_when_a_connection_is_lost_is_given_up(forgotten, monkeypatch):
    made, link = forgotten(Hears())
    job = job_of(made)
    made.submit(job)
    started = time.monotonic()
    groups.break_groups()
    job.future.wait()
    assert time.monotonic() - started < 10
    assert isinstance(job.failure, PeerLost)
    assert "in the middle of a message" in str(job.failure)
    again = job_of(made, 2)
    made.submit(again)
    again.future.wait()
    assert again.failure is job.failure
    made.close()
    assert time.monotonic() - started < 10, "the thread that nothing wakes is not waited for"

    monkeypatch.setattr(groups, "break_groups", lambda: pytest.fail("there are other groups by now"))
    link.is_open.set()  # as its time limit would, minutes later
    made._thread.join(10)
    assert not made._thread.is_alive()
    assert again.failure is job.failure


def test_a_call_between_steps_is_given_up_too(forgotten):
    made, link = forgotten(Tells())
    job = job_of(made)
    made.submit(job)
    job.future.wait()
    threading.Timer(0.2, groups.break_groups).start()
    with pytest.raises(PeerLost, match="in the middle of a message"):
        made.call("collect_state", lambda wire: wire.settle(2))
    link.is_open.set()


def test_a_bucket_that_waits_for_earlier_sends_is_given_up_too(forgotten):
    made, link = forgotten(Tells())
    for number in (1, 2):
        job = job_of(made, number)
        made.submit(job)
    groups.break_groups()
    job.future.wait()
    assert isinstance(job.failure, PeerLost)
    link.is_open.set()
