"""What others run with Serve on the cluster has its own port; if they end all of Serve, ours comes back."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import settings, state
from eagleray.registry.models import MlflowModels
from support import cards, listening
from support.failing import gateways
from support.served import NAME, Load, deploy, infer, is_answered, services, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
APP = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Theirs:
    def __init__(self):
        from eagleray.cluster.loopback_ray260 import keep_replica_to_node_address
        keep_replica_to_node_address()  # as docs/security.md advises

    async def __call__(self, request):
        return {"path": request.url.path, "sent": (await request.body()).decode()}

app = Theirs.bind()
"""
DELETE = """
import ray
from ray import serve
ray.init("auto", namespace="serve", logging_level="ERROR", log_to_driver=False)
serve.delete("theirs")
print(sorted(serve.status().applications))
"""


@pytest.fixture(scope="module")
def served(ingress: httpx.Client) -> Iterator[httpx.Client]:
    """A small model, ready."""
    store = MlflowModels(settings.tracking_uri(), settings.storage_url())
    card = cards.card("image", name=NAME)
    deploy(ingress, version=store.publish(card, cards.weights(card, 41)).version)
    until(lambda: infer(ingress).status_code == 200, client=ingress)
    yield ingress
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: not services(ingress))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the others' application."""
    (tmp_path / "theirs.py").write_text(APP)
    return tmp_path


def serve_run(folder: Path, name: str, *more: str) -> list[str]:
    """Ray's own command for the application, which is to answer at /NAME."""
    serve = str(Path(sys.executable).with_name("serve"))
    where = ("--name", name, "--route-prefix", f"/{name}", "--app-dir", str(folder))
    return [serve, "run", *where, *more, "theirs:app"]


def asked(cluster: state.ClusterState, name: str) -> httpx.Response | None:
    """What Serve's own proxy answers for the application; None: it does not."""
    url = f"http://127.0.0.1:{cluster.ports['serve']}/{name}/a"
    try:
        return httpx.post(url, content=b"body", trust_env=False, timeout=30)
    except httpx.TransportError:
        return None


def is_theirs_answered(cluster: state.ClusterState, name: str) -> bool:
    """Whether it answers there."""
    found = asked(cluster, name)
    return found is not None and found.status_code == 200


def test_an_application_of_others_answers_on_serves_own_proxy_alone(
    cluster: state.ClusterState, cluster_env: Mapping[str, str], served: httpx.Client, folder: Path
) -> None:
    words = serve_run(folder, "theirs", "--non-blocking")
    with Load(str(served.base_url)) as load:
        done = subprocess.run(
            words, env=cluster_env, cwd=folder, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(
            f"theirs answers: {until(lambda: is_theirs_answered(cluster, 'theirs')):.1f} s after `serve run`"
        )
        found = asked(cluster, "theirs")
        assert found is not None
        assert found.json() == {"path": "/theirs/a", "sent": "body"}
        for path in ("/theirs/a", "/theirs", "/v2/models/theirs", "/v2/models/theirs/infer"):
            hidden = served.post(path, content=b"body")
            assert (hidden.status_code, "sent" in hidden.text) in {(404, False), (405, False)}, hidden.text
        assert served.get("/theirs/a").status_code == 404
        assert [one["name"] for one in served.get("/admin/services").json()["services"]] == [NAME]
        listeners = listening.compared(cluster)
        assert "serve" in listeners.seen
        assert listeners.beyond == []
        ended = subprocess.run(
            [sys.executable, "-c", DELETE],
            env=cluster_env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "theirs" not in ended.stdout
        until(lambda: not is_theirs_answered(cluster, "theirs"))
        answered = load.answers.total()
        until(lambda: load.answers.total() > answered + 20)
    assert load.failed == []


def test_ctrl_c_of_serve_run_ends_all_of_serve_and_what_is_ours_comes_back(
    cluster: state.ClusterState, cluster_env: Mapping[str, str], served: httpx.Client, folder: Path
) -> None:
    before, old = services(served), gateways(cluster)
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(
            serve_run(folder, "blocking"),
            env=cluster_env, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(lambda: is_theirs_answered(cluster, "blocking") or running.poll() is not None)
        assert running.poll() is None, (folder / "log").read_text()
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 0, (folder / "log").read_text()
    finally:
        if running.poll() is None:
            running.kill()
            running.wait(10)
    until(lambda: not any(process.is_alive for process in old))
    assert "shutting down" in (folder / "log").read_text()
    print(f"the model answers again {until(lambda: is_answered(served)):.1f} s after all of Serve has ended")
    until(lambda: not served.get("/admin/status").json()["trouble"])
    assert list(services(served)) == list(before)
    assert not is_theirs_answered(cluster, "blocking"), "theirs is gone"
