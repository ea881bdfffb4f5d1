"""Node types of the local cluster, and the provider that starts nodes from them; no Ray cluster inside."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_LAUNCH_REQUEST,
    TAG_RAY_NODE_KIND,
    TAG_RAY_USER_NODE_TYPE,
)

from eagleray.cluster import files, gpus, node_types, nodes, preparation, processes, provider_ray260, state
from eagleray.errors import SpecError
from eagleray.specs import LocalSpec, load

ROOT = Path(__file__).parents[3]
TAGS = {
    TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
    TAG_RAY_USER_NODE_TYPE: "train_gpu",
    TAG_RAY_LAUNCH_REQUEST: "r1",
}


TYPES = "head_node_type: head\navailable_node_types: {head: {},"


@pytest.fixture
def spec():
    return load(LocalSpec, ROOT / "local.toml")


def by_name(found):
    return {node_type.name: node_type for node_type in found}


def test_local_toml_lies_over_cluster_yaml(spec):
    found = by_name(node_types.read_types(spec))
    assert set(found) == {"cpu_worker", "train_gpu", "serve_gpu"}
    assert found["train_gpu"].resources == {"CPU": 1, "GPU": 1, "memory": 2048 * 2**20}
    assert found["train_gpu"].labels == {"eagleray.io/pool": "train"}
    assert found["cpu_worker"].max_nodes == 2
    assert "GPU" not in found["cpu_worker"].resources


def test_overrides_reach_the_node_types(spec):
    changed = load(
        LocalSpec,
        ROOT / "local.toml",
        ["node_types.train_gpu.gpus=2", "node_types.train_gpu.cpus=3", "max_nodes=4"],
    )
    found = by_name(node_types.read_types(changed))["train_gpu"]
    assert (found.resources["GPU"], found.resources["CPU"]) == (2, 3)


def test_a_type_without_local_entry_gets_one_cpu(spec):
    bare = spec.model_copy(update={"node_types": {}, "max_nodes": 3})
    found = by_name(node_types.read_types(bare))
    assert found["cpu_worker"].resources["CPU"] == 1
    assert found["train_gpu"].resources["GPU"] == 1
    assert found["train_gpu"].max_nodes == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1", "no cluster-launcher file"),
        ("[1]", "no cluster-launcher file"),
        ("available_node_types: {a: {resources: {}}}\nhead_node_type: b", "no cluster-launcher file"),
        ("available_node_types: {a: {}}\nhead_node_type: [a]", "no cluster-launcher file"),
        ("available_node_types: [a]\nhead_node_type: a", "no cluster-launcher file"),
        ("a: caf\xe9", r"is not UTF-8 text \(byte 6\)"),
        (f"{TYPES} w: null}}", r"yaml: available_node_types\.w: should be a table .*\(found None\)"),
        (f"{TYPES} 3: [1]}}", r"available_node_types\.3: should be a table"),
        (f"{TYPES} w: {{resources: [1]}}}}", r"types\.w\.resources: should be a table .*\(found \[1\]\)"),
        (f"{TYPES} w: {{resources: {{CPU: x}}}}}}", r"w\.resources\.CPU: should be a number, .* 'x'\)"),
        (f"{TYPES} w: {{resources: {{CPU: -1}}}}}}", r"w\.resources\.CPU: should be a number"),
        (f"{TYPES} w: {{resources: {{CPU: .inf}}}}}}", r"w\.resources\.CPU: should be a number"),
        (f"{TYPES} w: {{resources: {{CPU: true}}}}}}", r"w\.resources\.CPU: should be a number"),
        (f"{TYPES} w: {{max_workers: many}}}}", r"w\.max_workers: should be a number, .*'many'\)"),
        (f"{TYPES} w: {{labels: {{a: 1}}}}}}", r"w\.labels\.a: should be text \(found 1\)"),
    ],
)
def test_a_file_that_is_no_cluster_file(spec, tmp_path, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="latin-1")
    bare = spec.model_copy(update={"cluster_file": str(path), "node_types": {}})
    with pytest.raises(SpecError, match=message) as caught:
        node_types.read_types(bare)
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="cannot be read"):
        node_types.read_types(spec.model_copy(update={"cluster_file": str(tmp_path / "none.yaml")}))


def test_a_type_that_cluster_yaml_does_not_have(spec):
    wrong = load(LocalSpec, ROOT / "local.toml", ["node_types.train_gpus.cpus=1"])
    with pytest.raises(SpecError, match=r"node_types.train_gpus: .*it has: cpu_worker, serve_gpu, train_gpu"):
        node_types.read_types(wrong)


def test_ray_accepts_the_autoscaling_config(spec, tmp_path):
    config = node_types.autoscaling_config(
        node_types.read_types(spec), spec, cluster_name="one", module=preparation.PROVIDER, directory=tmp_path
    )
    prepared = prepare_config(yaml.safe_load(yaml.safe_dump(config)))
    validate_config(prepared)
    assert prepared["idle_timeout_minutes"] * 60 == spec.idle_timeout_s
    assert prepared["max_workers"] == spec.max_nodes
    assert prepared["available_node_types"]["head"]["resources"]["CPU"] == 0
    module, _, name = preparation.PROVIDER.rpartition(".")
    assert (module, name) == (provider_ray260.__name__, provider_ray260.LocalNodeProvider.__name__)


@pytest.fixture
def provider(tmp_path, monkeypatch):
    """The provider, starting sleeping processes in place of nodes; they are ended afterwards."""
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    cluster = state.ClusterState(
        "one", "mark", "127.0.0.1", {"gcs": 20001}, tmp_path / "run", processes.this_process(), time.time()
    )
    for folder in (cluster.nodes_dir, cluster.logs_dir, cluster.runtime_dir):
        folder.mkdir(parents=True)
    files.write_json(cluster.directory / "state.json", state.to_json(cluster))
    started = []
    popen = subprocess.Popen

    def start(command, **options):
        assert command[1:3] == ["-m", "eagleray.cluster.node_main_ray260"]
        started.append((Path(command[3]), options["env"]))
        return popen([sys.executable, "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(provider_ray260.subprocess, "Popen", start)
    made = provider_ray260.LocalNodeProvider({"directory": str(cluster.directory)}, "one")
    made.started = started  # type: ignore[attr-defined]
    yield made
    for process in made._started.values():
        process.kill()
        process.wait()


def create(provider, count=1):
    provider.create_node_with_resources_and_labels(
        {"object_store_mib": 80}, TAGS, count, {"CPU": 1, "GPU": 1}, {"eagleray.io/pool": "train"}
    )
    return [node_id for node_id in provider.non_terminated_nodes({}) if node_id != "head"]


def test_created_nodes_are_listed_with_their_tags_beside_the_head(provider):
    ids = create(provider, 2)
    assert len(ids) == 2
    assert set(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER})) == set(ids)
    assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}) == ["head"]
    assert all(provider.node_tags(node_id) == TAGS and provider.is_running(node_id) for node_id in ids)
    plan, environment = provider.started[0]
    planned = nodes.read(plan)
    assert environment["RAY_CLOUD_INSTANCE_ID"] == planned.node_id
    assert environment["RAY_NODE_TYPE_NAME"] == "train_gpu"
    assert len(planned.temp_dir) <= len(str(provider.cluster.runtime_dir)) + 8


@pytest.mark.parametrize(
    ("real", "num_wanted", "held", "chosen"),
    [
        ([], 1, [], []),
        (["0", "1"], 1, [], ["0"]),
        (["0", "1"], 1, [["0"]], ["1"]),
        (["0", "1"], 1, [["0"], ["1"]], ["0"]),
        (["0", "1", "2"], 2, [["1"]], ["0", "2"]),
        (["0"], 2, [], []),
        (["GPU-a", "GPU-b"], 0, [], []),
    ],
)
def test_nodes_share_out_the_real_gpus(real, num_wanted, held, chosen):
    assert gpus.choose(real, num_wanted, held) == chosen


@pytest.mark.parametrize(
    ("real", "chosen", "num_wanted", "expected"),
    [
        ([], [], 1, {}),  # logical GPUs: Ray's own numbering does no harm
        (["0", "1"], ["1"], 1, {"CUDA_VISIBLE_DEVICES": "1"}),
        (["0"], [], 0, {"CUDA_VISIBLE_DEVICES": ""}),
        (["0"], [], 2, {}),
    ],
)
def test_a_node_sees_its_own_gpus_only(real, chosen, num_wanted, expected):
    assert gpus.environment(real, chosen, num_wanted) == expected


def test_two_nodes_get_two_gpus(provider, monkeypatch):
    monkeypatch.setattr(provider_ray260.gpus, "real_gpus", lambda: ["0", "1"])
    create(provider, 2)
    assert {environment["CUDA_VISIBLE_DEVICES"] for _, environment in provider.started} == {"0", "1"}


def test_a_restarted_monitor_finds_the_nodes_again(provider):
    ids = create(provider)
    provider.set_node_tags(ids[0], {"more": "1"})
    again = provider_ray260.LocalNodeProvider({"directory": str(provider.cluster.directory)}, "one")
    assert set(again.non_terminated_nodes({})) == {*ids, "head"}
    assert again.node_tags(ids[0]) == {**TAGS, "more": "1"}


def test_a_dead_node_is_forgotten_and_its_logs_are_kept(provider):
    (node_id,) = create(provider)
    node = nodes.read(nodes.path_of(provider.cluster.nodes_dir, node_id))
    logs = Path(node.temp_dir) / "session_2026" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker-1.out").write_text("x" * 300_000 + "the end")
    (logs / "empty.out").touch()
    processes.send(node.process, signal.SIGKILL)
    assert processes.wait_until(lambda: provider.non_terminated_nodes({}) == ["head"], timeout_s=60)
    assert not Path(node.temp_dir).exists()
    assert os.listdir(provider.cluster.nodes_dir) == []
    kept = provider.cluster.logs_dir / node_id
    assert [path.name for path in kept.iterdir()] == ["worker-1.out"]
    assert (kept / "worker-1.out").stat().st_size <= 256 * 1024
    assert (kept / "worker-1.out").read_text().endswith("the end")
    assert provider.is_terminated(node_id)


def test_a_terminated_node_is_no_longer_listed_and_ends(provider):
    (node_id,) = create(provider)
    provider.terminate_nodes([node_id, "unknown"])
    assert provider.non_terminated_nodes({}) == ["head"]
    assert processes.wait_until(
        lambda: provider.non_terminated_nodes({}) == ["head"] and not os.listdir(provider.cluster.nodes_dir),
        timeout_s=60,
    )


def test_a_tag_update_does_not_undo_a_termination(provider, monkeypatch):
    (node_id,) = create(provider)
    path = nodes.path_of(provider.cluster.nodes_dir, node_id)
    has_read, may_write, read = threading.Event(), threading.Event(), nodes.read

    def slow_read(found):
        node = read(found)
        if threading.current_thread() is tagging:
            has_read.set()
            may_write.wait(60)
        return node

    monkeypatch.setattr(nodes, "read", slow_read)
    tagging = threading.Thread(target=provider.set_node_tags, args=(node_id, {"more": "1"}))
    ending = threading.Thread(target=provider.terminate_node, args=(node_id,))
    tagging.start()
    assert has_read.wait(60)
    ending.start()
    ending.join(0.2)  # it must wait for the other
    may_write.set()
    tagging.join(60)
    ending.join(60)
    node = read(path)
    assert node.terminated_s
    assert node.tags["more"] == "1"


def test_nodes_are_listed_while_others_are_started(provider):
    launching = [threading.Thread(target=create, args=(provider, 2)) for _ in range(3)]
    for thread in launching:
        thread.start()
    while any(thread.is_alive() for thread in launching):
        provider.non_terminated_nodes({})
    assert len(provider._started) == len(provider._held_gpus) == 6
    assert len(provider.non_terminated_nodes({})) == 7


def test_a_folder_that_cannot_be_deleted_is_tried_again(provider, monkeypatch, caplog):
    (node_id,) = create(provider)
    temp = Path(nodes.read(nodes.path_of(provider.cluster.nodes_dir, node_id)).temp_dir)
    temp.mkdir()
    provider._started[node_id].kill()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_DELETE_PAUSE_S", 0)
        patch.setattr(files.shutil, "rmtree", lambda _path, onerror: None)
        assert processes.wait_until(lambda: provider.non_terminated_nodes({}) == ["head"], timeout_s=60)
        assert f"node {node_id} has ended, but the folder {temp} cannot be deleted" in caplog.text
        assert provider._held_gpus == {}
    assert provider.non_terminated_nodes({}) == ["head"]
    assert not temp.exists()
    assert os.listdir(provider.cluster.nodes_dir) == []


def test_logs_of_old_nodes_are_dropped(tmp_path):
    logs, nodes_dir = tmp_path / "logs", tmp_path / "nodes"
    nodes_dir.mkdir()
    for index in range(20):
        temp = tmp_path / f"t{index}"
        (temp / "session_2026" / "logs").mkdir(parents=True)
        (temp / "session_2026" / "logs" / "worker.out").write_text("text")
        node = nodes.Node(f"n{index}", "t", {}, {}, {}, str(temp), {}, "a:1", 0.0)
        logs.mkdir(exist_ok=True)
        nodes.forget(nodes_dir, logs, node)
        os.utime(logs / f"n{index}", (index, index))
    assert len(list(logs.iterdir())) <= 17
    assert (logs / "n19").is_dir()


def test_a_half_written_node_counts_as_none(tmp_path):
    (tmp_path / "n1.json").write_text(json.dumps({"node_id": "n1"}))
    (tmp_path / "n2.json").write_text("{")
    assert nodes.read_all(tmp_path) == []


def test_labels_for_gateways_are_those_of_a_worker_type(spec: LocalSpec) -> None:
    def with_labels(**labels: str) -> LocalSpec:
        serving = spec.serving.model_copy(update={"gateway_labels": labels})
        return spec.model_copy(update={"serving": serving})

    assert node_types.read_types(with_labels(**{"eagleray.io/pool": "cpu"}))
    with pytest.raises(SpecError, match=r"serving\.gateway_labels: no worker type .*cpu_worker \{'eagleray"):
        node_types.read_types(with_labels(**{"eagleray.io/pool": "head"}))
