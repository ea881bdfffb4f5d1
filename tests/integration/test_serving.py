"""Models on the shared cluster, through the ingress that `up` started: deployed, replaced, refused."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from eagleray.cluster import settings
from eagleray.packaging import Folder
from eagleray.packaging.model_package import CODE
from eagleray.registry.models import MlflowModels
from eagleray.specs import Architecture
from support import cards
from support.served import IMAGE, NAME, SHARE, Load, deploy, infer, services, until


@pytest.fixture(scope="module")
def store(cluster) -> MlflowModels:
    return MlflowModels(settings.tracking_uri(), settings.storage_url())


@pytest.fixture(scope="module")
def versions(store: MlflowModels) -> tuple[int, int]:
    """Two of a small, untrained model; other tests have published some before, perhaps."""
    card = cards.card("image", name=NAME)
    first = store.publish(card, cards.weights(card, 1))
    return first.version, store.publish(card, cards.weights(card, 2), aliases=["candidate"]).version


@pytest.fixture(scope="module")
def served(versions: tuple[int, int], ingress: httpx.Client):
    """The first, ready; published while the ingress comes up."""
    began = time.monotonic()
    assert deploy(ingress, version=versions[0])["state"] == "starting"
    starting = infer(ingress)
    assert starting.status_code == 503
    assert int(starting.headers["retry-after"]) >= 1
    until(lambda: infer(ingress).status_code == 200, client=ingress)
    print(f"deploy to answer: {time.monotonic() - began:.1f} s")
    yield ingress
    ingress.post("/admin/undeploy", json={"name": NAME})
    until(lambda: not services(ingress))


def test_answers_are_those_of_the_package(served, versions, store):
    import numpy as np

    from eagleray.inference import Predictor
    from eagleray.packaging import open_package

    package = open_package(store.resolve(f"{NAME}/versions/{versions[0]}").url)
    image = np.array(IMAGE, np.float32).reshape(1, 1, 8, 8)
    expected = Predictor(package).predict({"image": image})
    answer = infer(served, count=3)
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert outputs["label"] == [expected["label"][0]] * 3
    assert outputs["class"] == [int(expected["class"][0])] * 3
    assert np.allclose(np.reshape(outputs["probabilities"], (3, 3)), expected["probabilities"], atol=1e-6)
    assert answer.json()["model_version"] == str(versions[0])


def test_a_second_version_takes_over_without_a_failed_request(served, versions):
    first, second = versions
    # Beside the first at the beginning: its alias leads to it, the plain name does not.
    answer = deploy(served, version="@candidate", default=False)
    assert answer["version"] == second
    with Load(str(served.base_url)) as load:
        seconds = until(lambda: infer(served, f"{NAME}@candidate").status_code == 200, client=served)
        print(f"second version to answer: {seconds:.1f} s")
        assert set(load.answers) == {str(first)}
        deploy(served, version=second)
        seconds = until(lambda: load.answers[str(second)] > 20, client=served)
        print(f"second version to take over: {seconds:.1f} s")
        until(lambda: list(services(served)) == [second], client=served)
        answered = load.answers[str(second)]
        # While the first one's replica ends:
        until(lambda: load.answers[str(second)] > answered + 30, client=served)
    assert load.failed == []
    assert load.answers[str(first)] > 0
    gone = infer(served, f"{NAME}/versions/{first}")
    assert gone.status_code == 404
    assert f"deployed: {second}" in gone.json()["error"]


def test_a_damaged_package_is_named_and_the_old_version_stays(served, versions, store):
    card = cards.card("image", name=NAME)
    third = store.publish(card, cards.weights(card, 3))
    weights = Path(third.url) / "weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    deploy(served)
    until(lambda: services(served)[third.version]["state"] == "failed", client=served)
    message = services(served)[third.version]["message"]
    assert "weights.safetensors" in message
    assert "Traceback" not in message
    assert infer(served).json()["model_version"] == str(versions[1])
    failed = infer(served, f"{NAME}/versions/{third.version}")
    assert failed.status_code == 503
    assert "weights.safetensors" in failed.json()["error"]


MY_NET = """
from torch.nn import AvgPool1d, Flatten, Module
class Net(Module):
    def __init__(self):
        super().__init__()
        self.pool = AvgPool1d(21, 21)
    def forward(self, images):
        if images.max() > 1000:
            raise ValueError("too bright")
        return self.pool(images.flatten(1))
def build(x, signature):
    return Net()
"""


@pytest.mark.parametrize("allow_code", [False, True])
def test_a_users_own_architecture_needs_to_be_allowed(served, store, tmp_path, allow_code):
    (tmp_path / "my_net.py").write_text(MY_NET)
    card = cards.card(
        "image",
        name=NAME,
        architecture=Architecture(function="my_net:build", arguments={"x": int(allow_code)}),
    )
    version = store.publish(card, {}, Folder(str(tmp_path)))
    answer = served.post(
        "/admin/deploy",
        json={"name": NAME, "default": False, "allow_code": allow_code, "cpus_per_replica": SHARE},
    )
    if allow_code:
        assert answer.status_code == 202
        until(lambda: services(served)[version.version]["state"] != "starting", client=served)
        assert services(served)[version.version]["state"] == "ready"
        path = f"{NAME}/versions/{version.version}"
        assert infer(served, path).status_code == 200
        failed = infer(served, path, image=[1e6] * 64)
        assert failed.status_code == 502
        assert failed.json()["error"].endswith("failed: ValueError: too bright")
        assert infer(served, path).status_code == 200
        served.post("/admin/undeploy", json={"name": NAME, "version": version.version})
    else:
        assert answer.status_code == 422
        assert f"{CODE}/my_net.py" in answer.json()["error"]
        assert "allow_code = true" in answer.json()["error"]


def test_a_large_request_is_answered_whole(served):
    answer = infer(served, count=5000)  # 1.3 MB of numbers
    assert answer.status_code == 200
    assert answer.json()["outputs"][1]["shape"] == [5000]


def test_what_can_never_be_placed_is_refused(served, versions):
    answer = served.post("/admin/deploy", json={"name": NAME, "version": versions[1], "gpus_per_replica": 64})
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("wants 1 replica with 64 GPU; ")
    assert infer(served).status_code == 200


def test_a_revoked_key_opens_nothing_at_once(served):
    created = served.post("/admin/keys", json={"name": "app", "scopes": ["admin"]}).json()
    mine = {"Authorization": f"Bearer {created['key']}"}
    until(lambda: served.get("/admin/keys", headers=mine).status_code == 200, 5)
    assert served.delete(f"/admin/keys/{created['id']}").status_code == 200
    until(lambda: served.get("/admin/keys", headers=mine).status_code == 401, 5)


@pytest.mark.parametrize(
    "name",
    [
        *("x-request-timeout-seconds", "X-Request-Timeout-Seconds", "x-request-disconnect-disabled"),
        *("serve_multiplexed_model_id", "x-session-id"),
    ],
)
def test_headers_that_steer_serve_steer_nothing(served, name):
    answer = infer(served, headers={name: "0.000001", "x-request-id": "mine"})
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (200, ["mine"])


def test_serves_own_proxy_leads_to_nothing_of_ours(cluster, served):
    url = f"http://127.0.0.1:{cluster.ports['serve']}"
    for path in ("/", "/v2", f"/v2/models/{NAME}/infer", "/admin/status"):
        assert httpx.get(url + path, trust_env=False, timeout=30).status_code == 404


def test_a_page_of_another_site_is_refused(served):
    with httpx.Client(base_url=served.base_url, trust_env=False) as anybody:
        assert infer(anybody).status_code == 200
        for header, value, status in (("host", "evil.example", 421), ("origin", "http://evil.example", 403)):
            answer = anybody.get("/models", headers={header: value})
            assert (answer.status_code, "send an API key" in answer.text) == (status, True)
            assert served.get("/models", headers={header: value}).status_code == 200


def test_names_come_as_they_were_sent(served):
    for sent, named in (("a%2Fb", "a/b"), ("a%23b", "a#b"), ("%2e%2e", ".."), ("x" * 300, "xxx")):
        answer = served.get(f"/v2/models/{sent}")
        assert (answer.status_code, named in answer.json()["error"]) == (404, True), answer.text
    assert infer(served).status_code == 200


def test_a_body_too_large_is_refused(served):
    for content in (b" " * 17 * 2**20, (b" " * 2**20 for _ in range(20))):
        answer = served.post(f"/v2/models/{NAME}/infer", content=content)
        assert (answer.status_code, "larger than 16777216 bytes" in answer.text) == (413, True)
    assert infer(served).status_code == 200
