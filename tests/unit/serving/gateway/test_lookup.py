"""What Serve says of its replicas; red when Ray moves it. Without a cluster."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from eagleray.serving.gateway import lookup_ray260
from eagleray.serving.gateway.lookup_ray260 import Lookup, Running, running
from support.links import run, until

MOVED = "Ray moved this; the pin is ray==2.60.*: adapt gateway/lookup_ray260.py"
ADDRESS = {"unix": "/s/1.sock", "tcp": "127.0.0.1:1", "instance": "ab", "node": "n", "protocol": 1}


def targets(*metadata):
    from ray.serve._private.common import DeploymentID, DeploymentTargetInfo, ReplicaID, RunningReplicaInfo

    replicas = [
        RunningReplicaInfo(
            ReplicaID(str(number), DeploymentID("Model", "m--x--v1")), "n", "127.0.0.1", None, "a", 32,
            replica_metadata=values,
        )
        for number, values in enumerate(metadata)
    ]  # fmt: skip
    return DeploymentTargetInfo(is_available=True, running_replicas=replicas)


def test_ray_has_all_that_is_used():
    from ray.serve._private import deployment_state, long_poll
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.controller import ServeController

    assert SERVE_CONTROLLER_NAME, MOVED
    assert SERVE_NAMESPACE, MOVED
    source = inspect.getsource(ServeController)
    assert "async def listen_for_change" in source, MOVED
    assert {"object_snapshot", "snapshot_id"} <= set(long_poll.UpdatedObject.__dataclass_fields__), MOVED
    pushed = inspect.getsource(deployment_state)
    assert "LongPollNamespace.DEPLOYMENT_TARGETS," in pushed, MOVED
    key = lookup_ray260._key("m--x--v1")
    assert key == (long_poll.LongPollNamespace.DEPLOYMENT_TARGETS, key[1])
    assert (key[1].name, key[1].app_name) == ("Model", "m--x--v1"), MOVED


def test_addresses_in_what_serve_says():
    bad = [{}, {"link": "x"}, {"link": {**ADDRESS, "unix": 7}}, {"link": {"unix": "/s"}}]
    found = running(targets({"link": {**ADDRESS, "more": 1}}, *bad))
    assert found == [Running(ADDRESS, 32)] + [Running(None, 32)] * 4
    assert running(targets()) == []


class Host:
    """Serve's controller: answers when there is news, as its long poll does."""

    def __init__(self) -> None:
        self.news = {}
        self.asked = []
        self.error = None
        self.change = asyncio.Event()
        self.listen_for_change = SimpleNamespace(remote=self.listen)

    def say(self, app, targets_) -> None:
        number = self.news.get(app, (0, None))[0] + 1
        self.news[app] = (number, targets_)
        self.change.set()
        self.change = asyncio.Event()

    async def listen(self, known):
        from ray.serve._private.long_poll import LongPollState

        [(key, seen)] = known.items()
        app = key[1].app_name
        self.asked.append((app, seen))
        while self.error is None and self.news.get(app, (seen,))[0] == seen:
            try:
                async with asyncio.timeout(0.05):
                    await self.change.wait()
            except TimeoutError:
                return LongPollState.TIME_OUT
        if self.error is not None:
            raise self.error
        number, snapshot = self.news[app]
        return {key: SimpleNamespace(snapshot_id=number, object_snapshot=snapshot)}


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(lookup_ray260, "RETRY_S", 0.01)
    return []


def test_each_change_is_told_also_after_serve_was_away(found, monkeypatch, caplog):
    async def scenario():
        host = Host()
        monkeypatch.setattr("ray.get_actor", lambda name, namespace: host)
        lookup = Lookup(lambda app, replicas: found.append((app, len(replicas))))
        host.say("a", targets({"link": ADDRESS}))
        lookup.follow(["a", "b"])
        await until(lambda: found == [("a", 1)])
        await asyncio.sleep(0.12)  # the polls end without news, and go on
        host.say("b", targets())
        await until(lambda: found[1:] == [("b", 0)])
        host.error = RuntimeError("away")
        host.change.set()
        await until(lambda: "Serve does not say which replicas a has: RuntimeError: away" in caplog.text)
        host.error = None
        host.say("a", targets({"link": ADDRESS}, {}))
        await until(lambda: ("a", 2) in found)
        lookup.follow(["b"])
        host.say("a", targets())
        await asyncio.sleep(0.02)
        assert ("a", 0) not in found
        await lookup.close()

    run(scenario())
    assert sum("has: RuntimeError" in record.message for record in caplog.records) == 2, "one for each app"
