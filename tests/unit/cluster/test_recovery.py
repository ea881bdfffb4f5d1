"""The profile that holds in a cluster, and a node that learns of its own death."""

from types import SimpleNamespace

import pytest
from ray import NodeID
from ray.experimental import internal_kv

from eagleray.cluster import profiles, recovery_ray260


@pytest.fixture
def store(monkeypatch):
    """The GCS's key-value store."""
    kept = {}
    calls = {
        "_internal_kv_get": lambda key, namespace: kept.get((namespace, key)),
        "_internal_kv_put": lambda key, value, overwrite, namespace: kept.update({(namespace, key): value}),
        "_internal_kv_del": lambda key, namespace: kept.pop((namespace, key), None),
    }
    for name, call in calls.items():
        monkeypatch.setattr(internal_kv, name, call)
    return kept


def test_what_attach_was_given_holds_until_it_is_withdrawn(store, monkeypatch):
    monkeypatch.setenv(profiles.VARIABLE, "lossy")
    assert recovery_ray260.in_use().name == "lossy"
    recovery_ray260.publish(profiles.named("fast"))
    recovery_ray260.publish(profiles.named("default"))
    assert recovery_ray260.in_use().name == "default"
    recovery_ray260.withdraw()
    recovery_ray260.withdraw()
    assert recovery_ray260.in_use().name == "lossy"
    assert store == {}


def test_a_node_is_dead_when_the_gcs_says_so_and_not_when_it_says_nothing(monkeypatch):
    monkeypatch.setattr(recovery_ray260, "_ASK_EVERY_S", 0.01)
    answers = [[True], TimeoutError("the GCS is away"), RuntimeError("and still"), [True], [False]]
    asked = []

    def check_alive(ids, timeout):
        asked.append(ids)
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    node = SimpleNamespace(node_id="0a" * 28, get_gcs_client=lambda: SimpleNamespace(check_alive=check_alive))
    assert recovery_ray260.watch_for_death(node).wait(10)
    assert asked == [[NodeID.from_hex("0a" * 28)]] * 5
