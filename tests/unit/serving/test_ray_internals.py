"""Each thing of Ray Serve 2.60 without a public name that serving/*_ray260.py uses: red when Ray moves it."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

MOVED = "Ray moved this; the pin is ray==2.60.*: adapt the *_ray260.py file of serving that uses it"


def test_serve_is_started_and_spoken_to_one_level_below_serve_run():
    from ray.serve import context
    from ray.serve._private import api
    from ray.serve._private.build_app import build_app
    from ray.serve._private.client import ServeControllerClient

    wanted = {
        "http_options", "grpc_options", "global_logging_config", "global_tracing_config",
        "controller_options", "proxy_location",
    }  # fmt: skip
    assert wanted <= set(inspect.signature(api._create_controller_and_proxy_refs).parameters), MOVED
    for name in ("_get_global_client", "_set_global_client", "_disconnect"):
        assert hasattr(context, name), f"context.{name}: {MOVED}"
    assert "raise_if_no_controller_running" in inspect.signature(context._get_global_client).parameters, MOVED
    deploy = inspect.signature(ServeControllerClient.deploy_applications).parameters
    assert {"wait_for_ingress_deployment_creation", "wait_for_applications_running"} <= set(deploy), MOVED
    assert "blocking" in inspect.signature(ServeControllerClient.delete_apps).parameters, MOVED
    for name in ("list_serve_statuses", "get_serve_details", "http_config"):
        assert hasattr(ServeControllerClient, name), f"ServeControllerClient.{name}: {MOVED}"
    assert {"name", "route_prefix"} <= set(inspect.signature(build_app).parameters), MOVED


def test_a_version_of_ours_stays_with_a_deployment():
    from ray import serve
    from ray.serve._private.build_app import build_app
    from ray.serve._private.client import ServeControllerClient

    from eagleray.serving.model_app import ModelReplica

    bound = serve.deployment(name="Model")(ModelReplica).bind({})
    bound._bound_deployment._version = "ours"
    [deployment] = build_app(bound, name="m--x--v1", route_prefix=None).deployments
    assert deployment._version == "ours", MOVED
    assert "version=deployment._version" in inspect.getsource(ServeControllerClient.deploy_applications), (
        MOVED
    )


def test_a_replicas_class_travels_by_name_and_not_by_value():
    """Else every change of it would need the same code on the head and on the node, pickled."""
    from ray import cloudpickle

    from eagleray.serving.model_app import ModelReplica

    assert len(cloudpickle.dumps(ModelReplica)) < 200


def test_the_handle_is_made_without_asking_serve():
    from ray.serve.handle import DeploymentHandle

    assert list(inspect.signature(DeploymentHandle.__init__).parameters)[1:3] == [
        "deployment_name",
        "app_name",
    ]
    assert hasattr(DeploymentHandle, "shutdown_async"), MOVED


def test_the_options_that_model_applications_use():
    from eagleray.serving import model_app
    from eagleray.specs import ServiceSpec

    spec = ServiceSpec(
        kind="service", name="x", min_replicas=0, max_replicas=3, max_queued_requests=7, max_batch_size=32
    )
    config = model_app.build(spec, {})._bound_deployment._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (0, 1, 3)
    assert config.max_ongoing_requests >= spec.max_batch_size, "or a batch would never fill"
    assert config.max_queued_requests == 7
    assert config.max_surge_percent == 100


def test_a_model_has_no_route_and_takes_the_gpu_and_the_node_that_its_spec_names():
    from eagleray.serving import model_app
    from eagleray.serving.services import ServedVersion
    from eagleray.specs import ServiceSpec
    from support import cards

    spec = ServiceSpec(
        kind="service", name="x", cpus_per_replica=2, gpus_per_replica=0.5, label_selector={"pool": "gpu"}
    )
    served = ServedVersion(spec, 1, "/models/1", "0" * 64, cards.card(), deployed_at=0.0)
    app = model_app.app_of(served, {"key": "00" * 32, "max_frame_bytes": 1})
    assert app.route_prefix is None
    options = app.deployment._bound_deployment.ray_actor_options
    wanted = {"num_cpus": 2, "num_gpus": 0.5, "label_selector": {"pool": "gpu"}}
    assert wanted.items() <= options.items()
    assert model_app.arguments_of(spec, "", None, {})["num_gpus"] == 1, "half of one is one to pick"


def test_a_replica_warms_up_with_one_sample_and_with_a_whole_batch():
    from types import SimpleNamespace

    from eagleray.serving.model_app import ModelReplica
    from eagleray.serving.replica.fit import Fits

    sizes, texts, fit = [], [], Fits()
    predictor = SimpleNamespace(warm_up=sizes.append, card=SimpleNamespace(is_generative=True))
    made = SimpleNamespace(run=lambda asked: texts.append(asked.prompt))
    replica = SimpleNamespace(_predictor=predictor, _texts=made, _fit=fit)
    ModelReplica._warm_up(replica, 32)
    assert (sizes, texts) == ([1] * 4 + [32] * 4, ["a"])
    assert fit.overall() is not None, "of each size the calls after the first say what a pass takes"


def test_what_disturbs_a_pass_while_a_replica_starts_is_not_taken_for_its_time(monkeypatch):
    from types import SimpleNamespace

    from eagleray.serving import model_app
    from eagleray.serving.replica.fit import Fits

    clock, passes, fit = [0.0], {1: [9.0, 0.4, 0.002, 0.3], 8: [9.0, 0.009, 0.7]}, Fits()

    def warm_up(size: int) -> None:
        clock[0] += passes[size].pop(0)

    monkeypatch.setattr(model_app.time, "perf_counter", lambda: clock[0])
    replica = SimpleNamespace(_predictor=SimpleNamespace(warm_up=warm_up), _texts=None, _fit=fit)
    model_app.ModelReplica._warm_up(replica, 8)
    assert fit.seconds("any", 1) == pytest.approx(0.002, rel=0.2)
    assert fit.seconds("any", 8) == pytest.approx(0.009, rel=0.2)
    assert passes == {1: [], 8: []}, "long passes are not repeated"


def test_gateways_are_on_the_head_alone_take_no_cpu_and_have_no_route():
    from types import SimpleNamespace

    from eagleray.serving import ingress_app
    from eagleray.serving.control_settings import ControllerSettings
    from eagleray.serving.controller import Controller
    from eagleray.serving.gateway.orders import GatewayOrders
    from eagleray.serving.gateway.settings import GatewaySettings

    settings = ControllerSettings("c", "/d", "", "127.0.0.1", 1, "", "", gateway=GatewaySettings(number=2))
    orders = SimpleNamespace(gateways=GatewayOrders(restarts=1))
    app = Controller.ingress(SimpleNamespace(in_effect=lambda: settings, record=orders))
    assert app.route_prefix is None
    deployment = app.deployment._bound_deployment
    assert deployment.ray_actor_options["num_cpus"] == 0
    assert deployment.ray_actor_options["resources"] == {"node:__internal_head__": 0.001}
    assert deployment.num_replicas == 2
    config = deployment._deployment_config
    assert config.max_surge_percent == 100, "a new gateway listens before the old one ends"
    assert config.graceful_shutdown_timeout_s > ingress_app.drain_s(settings)
    single = ControllerSettings.from_json({**settings.to_json(), "gateway": {}})
    labels = {"eagleray.io/pool": "serve"}
    assert ingress_app.place(replace(settings.gateway, labels=labels)) == {"label_selector": labels}
    assert app.version == ingress_app.fingerprint(single, restarts=1), "another number replaces none"
    assert app.version != ingress_app.fingerprint(settings, restarts=2)
    tls = replace(settings, gateway=replace(settings.gateway, tls_cert="/c", tls_key="/k"))
    assert app.version != ingress_app.fingerprint(tls, restarts=1)


def test_ray_says_whether_an_actor_lives():
    from ray._private import state

    assert "actor_id" in inspect.signature(state.actors).parameters, MOVED
    assert '"State"' in inspect.getsource(state.GlobalState._gen_actor_info), MOVED


def test_serve_ends_a_replica_by_its_destructor_which_may_be_a_coroutine():
    from ray.serve._private.replica import UserCallableWrapper

    from eagleray.serving.ingress_app import IngressReplica

    assert inspect.iscoroutinefunction(IngressReplica.__del__)
    source = inspect.getsource(UserCallableWrapper.call_destructor)
    assert "self._callable.__del__" in source, MOVED
    assert "await self._call_func_or_gen" in source, MOVED


def test_a_handle_may_be_asked_from_any_loop():
    """Its router has a thread of its own; without, a gateway's loop could not await what it answers."""
    from ray.serve._private import constants

    assert constants.RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP, MOVED


def test_serves_proxy_is_on_the_head_only(monkeypatch):
    from ray.serve import context
    from ray.serve._private import api

    from eagleray.serving.serve_control_ray260 import ServeControl

    asked = {}
    monkeypatch.setattr(context, "_get_global_client", lambda **_: None)
    monkeypatch.setattr(context, "_set_global_client", lambda _client: None)
    monkeypatch.setattr("ray.serve._private.client.ServeControllerClient", lambda controller: controller)

    def create(**options):
        asked.update(options)
        return None, {}

    monkeypatch.setattr(api, "_create_controller_and_proxy_refs", create)
    assert ServeControl(8123).start()
    assert asked["proxy_location"].value == "HeadOnly"
    assert (asked["http_options"].host, asked["http_options"].port) == ("127.0.0.1", 8123)


def test_serves_settings_are_names_that_serve_reads():
    from pathlib import Path

    from ray.serve._private import constants

    from eagleray.cluster import environment

    source = Path(constants.__file__).read_text()
    ours = {
        word for word in Path(environment.__file__).read_text().split('"') if word.startswith("RAY_SERVE_")
    }
    unknown = [name for name in ours if f'"{name}"' not in source and not name.endswith("_")]
    assert ours
    assert unknown == [], MOVED


def test_serve_asks_a_replica_for_its_address_by_a_name_that_it_knows_and_ends_it_by_another():
    from ray.serve._private import constants, replica
    from ray.serve._private.common import RunningReplicaInfo

    from eagleray.serving.model_app import ModelReplica

    assert constants.RECORD_REPLICA_METADATA_METHOD == "record_replica_metadata", MOVED
    assert hasattr(ModelReplica, constants.RECORD_REPLICA_METADATA_METHOD)
    assert "replica_metadata" in RunningReplicaInfo.__dataclass_fields__, MOVED
    assert "self._callable.__del__" in inspect.getsource(replica), MOVED
