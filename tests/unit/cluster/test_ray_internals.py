"""Each thing of Ray 2.60 that has no public name and that cluster/*_ray260.py uses: red when Ray moves it."""

import inspect
from pathlib import Path

import pytest
import ray

from eagleray.cluster import loopback_ray260, profiles, ray_start_ray260
from eagleray.cluster.supervisor import RESTARTED_ROLES

RAY = Path(ray.__file__).parent
MOVED = "Ray moved this; the pin is ray==2.60.*: adapt the *_ray260.py file that uses it"


def test_the_version_is_the_one_that_the_files_are_named_after():
    assert ray.__version__.startswith("2.60."), MOVED


def test_node_and_its_parameters():
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    wanted = {"ray_params", "head", "shutdown_at_exit", "spawn_reaper"}
    assert wanted <= set(inspect.signature(Node.__init__).parameters), MOVED
    for method in ("dead_processes", "kill_all_processes", "get_gcs_client", "start_log_monitor"):
        assert hasattr(Node, method), f"Node.{method}: {MOVED}"
    assert {"check_alive", "allow_graceful"} <= set(inspect.signature(Node.kill_all_processes).parameters), (
        MOVED
    )
    known = set(inspect.signature(RayParams.__init__).parameters)
    used = {
        "gcs_address", "node_ip_address", "node_name", "num_cpus", "num_gpus", "memory", "resources",
        "labels", "object_store_memory", "temp_dir", "dashboard_agent_listen_port",
        "include_log_monitor", "gcs_server_port", "autoscaling_config", "include_dashboard",
        "dashboard_host", "dashboard_port", "metrics_agent_port", "metrics_export_port",
        "runtime_env_agent_port", "node_manager_port", "object_manager_port", "ray_client_server_port",
    }  # fmt: skip
    assert used <= known, f"{used - known}: {MOVED}"


def test_a_nodes_death_is_asked_of_the_gcs():
    from ray._private.node import Node
    from ray._raylet import InnerGcsClient

    assert isinstance(Node.node_id, property), MOVED
    assert "(self, list node_ids: List[NodeID], timeout:" in str(InnerGcsClient.check_alive.__doc__), MOVED


def test_ray_start_says_and_does_what_the_guard_relies_on():
    source = (RAY / "scripts/scripts.py").read_text()  # its import takes seconds
    assert f'startup_msg = "{ray_start_ray260.IS_UP}"' in source, MOVED
    _, _, blocked = source.partition("    if block:\n        logs_dir")
    assert "time.sleep(1)" in blocked, MOVED
    assert "os._exit(1)" in blocked, MOVED
    assert inspect.cleandoc("""
        expected_return_codes = [
            0,
            signal.SIGTERM,
            -1 * signal.SIGTERM,
            128 + signal.SIGTERM,
        ]""").replace(" ", "") in blocked.replace(" ", ""), MOVED
    assert (RAY / f"core/src/ray/raylet/{ray_start_ray260.RAYLET}").exists(), MOVED


def test_roles_of_the_head():
    from ray._private import ray_constants

    names = {value for key, value in vars(ray_constants).items() if key.startswith("PROCESS_TYPE_")}
    assert set(RESTARTED_ROLES) <= names, MOVED


def test_the_provider_interface_that_the_autoscaler_calls():
    from ray.autoscaler.node_provider import NodeProvider
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    from eagleray.cluster.provider_ray260 import LocalNodeProvider

    called = inspect.getsource(NodeProviderAdapter)
    for method in (
        "terminate_nodes", "non_terminated_nodes", "is_running", "node_tags",
        "create_node_with_resources_and_labels",
    ):  # fmt: skip
        assert f"_v1_provider.{method}" in called, f"{method}: {MOVED}"
        ours = inspect.signature(getattr(LocalNodeProvider, method))
        assert list(ours.parameters) == list(inspect.signature(getattr(NodeProvider, method)).parameters), (
            MOVED
        )


def test_settings_are_still_read():
    source = "".join(
        (RAY / path).read_text()
        for path in (
            "_private/ray_constants.py", "autoscaler/_private/constants.py", "_private/services.py",
            "_private/node.py", "autoscaler/v2/utils.py", "dashboard/consts.py",
            "dashboard/modules/job/job_supervisor.py",
        )
    )  # fmt: skip
    for name in (
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "AUTOSCALER_UPDATE_INTERVAL_S", "AUTOSCALER_METRIC_PORT",
        "DASHBOARD_METRIC_PORT", "RAY_CLOUD_INSTANCE_ID", "gcs_storage",
        "RAY_JOB_STOP_WAIT_TIME_S",
    ):  # fmt: skip
        assert name in source, f"{name}: {MOVED}"
    library = (RAY / "_raylet.so").read_bytes()
    for name in (b"RAY_AUTH_TOKEN_PATH", b"RAY_NODE_TYPE_NAME"):
        assert name in library, f"{name}: {MOVED}"
    gcs = (RAY / "core/src/ray/gcs/gcs_server").read_bytes()
    of_profiles = [name.removeprefix("RAY_").encode() for name in profiles.named("default").of_ray]
    for name in (*of_profiles, b"gcs_storage_path"):
        assert name in gcs, f"{name}: {MOVED}"
    serve = (RAY / "serve/_private/constants.py").read_text()
    train = (RAY / "train/v2/_internal/constants.py").read_text()
    for profile in profiles.PROFILES.values():
        assert [name for name in profile.of_serve if f'"{name}"' not in serve] == [], MOVED
        assert [name for name in profile.of_jobs if f'"{name}"' not in train] == [], MOVED


def test_what_the_ledger_reads_of_nodes_and_placement_groups():
    from ray._private.state import GlobalState
    from ray._raylet import InnerGcsClient
    from ray.core.generated import autoscaler_pb2 as messages

    node = {field.name for field in messages.NodeState.DESCRIPTOR.fields}
    used = {
        "node_id", "total_resources", "available_resources", "labels", "ray_node_type_name", "status",
        "node_ip_address",
    }  # fmt: skip
    assert used <= node, f"{used - node}: {MOVED}"
    cluster = {field.name for field in messages.ClusterResourceState.DESCRIPTOR.fields}
    used = {"node_states", "pending_resource_requests", "pending_gang_resource_requests"}
    assert used <= cluster, f"{used - cluster}: {MOVED}"
    assert {"DEAD", "DRAINING"} <= set(messages.NodeStatus.keys()), MOVED
    assert "timeout_s" in str(InnerGcsClient.get_cluster_resource_state.__doc__), MOVED
    assert "-> Dict[str, int]" in str(InnerGcsClient.get_draining_nodes.__doc__), MOVED
    table = inspect.getsource(GlobalState._gen_placement_group_info)
    for key in ("name", "bundles", "bundles_to_node_id", "state"):
        assert f'"{key}":' in table, f"{key}: {MOVED}"
    assert '"CREATED"' in table, MOVED


def test_nodes_can_be_asked_for_beside_those_that_are_there():
    from ray._private.label_utils import validate_label_selector
    from ray.util.placement_group import placement_group

    assert validate_label_selector({"ray.io/node-id": "!in(0a1b,2c3d)"}) is None, MOVED
    assert {"name", "bundle_label_selector"} <= set(inspect.signature(placement_group).parameters), MOVED
    scheduler = (RAY / "autoscaler/v2/scheduler.py").read_text()
    assert "LABEL_OPERATOR_NOT_IN" in scheduler, MOVED


def test_the_coordinator_of_stock_runs():
    from eagleray.cluster import ray_side_ray260

    folder = RAY / "data/_internal/cluster_autoscaler"  # its import takes seconds
    source = (folder / "default_autoscaling_coordinator.py").read_text()
    name = ray_side_ray260.COORDINATOR
    assert f'name="{name}",\n        namespace="{name}",' in source, MOVED
    _, _, request = source.partition("class _AutoscalingCoordinatorActor")
    for part in (
        "def request_resources(", "def cancel_request(", "requester_id: RequesterId,",
        "resources: List[ResourceDict],", "expire_after_s: float,", "priority=priority.value,",
    ):  # fmt: skip
        assert part in request, f"{part}: {MOVED}"
    assert "HIGH = 10" in (folder / "base_autoscaling_coordinator.py").read_text(), MOVED


def test_key_value_store_and_cluster_config():
    from ray._private.state import GlobalState
    from ray._raylet import InnerGcsClient
    from ray.experimental import internal_kv

    assert hasattr(GlobalState, "get_cluster_config"), MOVED
    assert hasattr(InnerGcsClient, "internal_kv_put"), MOVED
    assert "bool del_by_prefix, namespace" in str(InnerGcsClient.internal_kv_del.__doc__), MOVED
    assert hasattr(internal_kv, "internal_kv_get_gcs_client"), MOVED
    assert "namespace" in inspect.signature(internal_kv._internal_kv_get).parameters, MOVED


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serve_still_binds_its_replicas_where_we_patch(monkeypatch):
    from ray.serve._private import replica

    assert '"[::]:0"' in inspect.getsource(replica), MOVED
    bound = []
    monkeypatch.setattr(replica, "add_port_to_grpc_server", lambda _server, address: bound.append(address))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    loopback_ray260.keep_replica_to_node_address()
    loopback_ray260.keep_replica_to_node_address()
    replica.add_port_to_grpc_server(None, "[::]:0")
    replica.add_port_to_grpc_server(None, "10.0.0.1:7")
    assert bound == ["127.0.0.1:0", "10.0.0.1:7"]
