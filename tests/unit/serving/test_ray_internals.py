"""Each thing of Ray Serve 2.60 without a public name that serving/*_ray260.py uses: red when Ray moves it."""

from __future__ import annotations

import inspect

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
