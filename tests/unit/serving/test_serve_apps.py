"""The Serve applications of serve_apps/ load, and build what the controller does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from eagleray.serving import ingress_app, model_app
from eagleray.serving.control_settings import ControllerSettings

APPS = Path(__file__).resolve().parents[3] / "serve_apps"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"serve_apps_{name}", APPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gateways_of_a_controllers_settings(tmp_path: Path) -> None:
    folder = str(tmp_path)
    settings = ControllerSettings("c", folder, "", "127.0.0.1", 8000, storage_url=folder, tracking_uri=folder)
    found = load("ingress").app(settings.to_json())
    assert found._bound_deployment.name == ingress_app.DEPLOYMENT


def test_a_model_of_a_packages_url(tmp_path: Path) -> None:
    found = load("model").app({"url": str(tmp_path), "max_replicas": 3})
    assert found._bound_deployment.name == model_app.DEPLOYMENT
    assert found._bound_deployment._deployment_config.autoscaling_config.max_replicas == 3
    [arguments] = found._bound_deployment.init_args
    assert arguments["url"] == str(tmp_path)
