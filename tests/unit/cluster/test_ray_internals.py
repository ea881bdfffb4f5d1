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


def test_key_value_store_and_cluster_config():
    from ray._private.state import GlobalState
    from ray._raylet import InnerGcsClient
    from ray.experimental import internal_kv

    assert hasattr(GlobalState, "get_cluster_config"), MOVED
    assert hasattr(InnerGcsClient, "internal_kv_put"), MOVED
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
