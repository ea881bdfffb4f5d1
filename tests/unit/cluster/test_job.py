"""What a driver says of its nodes; `ray.nodes` is played."""

import pytest
import ray

from eagleray.cluster import job_ray260

NODES = [
    {"NodeID": "a" * 56, "NodeName": "10.0.0.7", "Resources": {"node:10.0.0.7": 1.0, "CPU": 2.0}},
    {"NodeID": "b" * 56, "NodeName": "127.0.0.1", "Resources": {"eagleray_node_train-gpu-1": 1.0}},
]


@pytest.mark.parametrize(
    ("node_id", "name"), [("a" * 56, "10.0.0.7"), ("b" * 56, "train-gpu-1"), ("c" * 56, "cccccccc")]
)
def test_a_node_goes_by_our_name_or_its_hosts(monkeypatch, node_id, name):
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    assert job_ray260.node_name(node_id) == name
