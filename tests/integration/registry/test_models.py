"""Model versions in MLflow's registry: numbers, aliases, lineage; publishers killed, or many at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from eagleray.errors import InputError, ModelNotFound, PackageError, ServiceError
from eagleray.packaging import Folder, open_package
from eagleray.packaging.model_package import PackedModel
from eagleray.registry.models import MlflowModels
from support.cards import card, lineage
from support.object_store import free_port

ROOT = Path(__file__).parents[3]
WEIGHTS = {"w": torch.arange(4.0)}


@pytest.fixture
def models(place):
    return MlflowModels(f"sqlite:///{place}/mlflow.db", str(place / "storage"))


def client(place):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")


def test_versions_aliases_and_lineage(models, place):
    first = models.publish(card(name="plants", metrics={"test_accuracy": 0.5}), WEIGHTS)
    parent = lineage(search="search-1", parent=first.ref, optimization=("pruned", "int8"))
    second = models.publish(card(name="plants", lineage=parent), WEIGHTS, aliases=["candidate", "best"])
    assert [first.version, second.version] == [1, 2]
    assert second.aliases == ("best", "candidate")
    assert second.lineage == parent
    assert first.metrics == {"test_accuracy": 0.5}
    assert [version.version for version in models.versions("plants")] == [1, 2]
    assert "plants" in models.names()
    assert models.resolve("plants") == second
    assert models.resolve("plants@best") == second
    assert models.resolve("plants/versions/1") == first
    models.promote("plants", 1, "best")
    assert models.resolve("plants@best").version == 1
    assert models.resolve("plants@candidate").version == 2
    package = open_package(second.url, digest=second.digest)
    assert package.card.lineage == parent
    assert torch.equal(package.weights()["w"], WEIGHTS["w"])
    assert second.url.startswith(f"{place}/storage/models/plants/{second.digest[:16]}-")


def test_one_package_published_by_three_at_once(place):
    same = card(name="same")

    def publish(_):
        return MlflowModels(f"sqlite:///{place}/mlflow.db", str(place / "storage")).publish(same, WEIGHTS)

    with ThreadPoolExecutor(3) as threads:
        made = sorted(threads.map(publish, range(3)), key=lambda version: version.version)
    assert [version.version for version in made] == [1, 2, 3]
    assert len({version.digest for version in made}) == 1
    for version in made:
        assert torch.equal(open_package(version.url, digest=version.digest).weights()["w"], WEIGHTS["w"])


def test_mlflows_own_page_has_all_of_it(models, place):
    mlflow = client(place)
    experiment = mlflow.create_experiment("linked")
    run = mlflow.create_run(experiment, tags={"eagleray.run": "digits-7"}).info.run_id
    of_run = lineage(run_id="digits-7", search="search-2")
    made = models.publish(card(name="linked", lineage=of_run), WEIGHTS, aliases=["candidate"])
    version = mlflow.get_model_version_by_alias("linked", "candidate")
    assert version.source == made.url
    assert version.run_id == run
    assert version.tags["eagleray.digest"] == made.digest
    for word in ("test_accuracy | 0.97", "search-2", "dataset_digest | dddd", "`cnn`, image", "digits-7"):
        assert word in version.description


def test_what_is_not_there_is_said(models):
    models.publish(card(name="there"), WEIGHTS, aliases=["candidate"])
    with pytest.raises(
        ModelNotFound, match=r"no model 'their' \(did you mean .*there.*\?\); there are: .*there"
    ):
        models.resolve("their")
    with pytest.raises(ModelNotFound, match=r"no version 9; versions: 1"):
        models.promote("there", 9, "best")
    with pytest.raises(ModelNotFound, match=r"no alias 'best'; versions: 1; aliases: candidate"):
        models.resolve("there@best")


@pytest.mark.parametrize("name", ["a#b", "a/b", "..", "x" * 300])
def test_no_such_name(models, name):
    with pytest.raises(InputError, match="model name"):
        models.versions(name)
    with pytest.raises(InputError, match="alias"):
        models.publish(card(name="named"), WEIGHTS, aliases=[name])
    assert "named" not in models.names()


def test_versions_that_others_made_are_not_ours(models, place):
    client(place).create_registered_model("foreign")
    client(place).create_model_version("foreign", "s3://somewhere/else")
    assert "foreign" not in models.names()
    with pytest.raises(ModelNotFound):
        models.resolve("foreign")
    assert models.publish(card(name="foreign"), WEIGHTS).version == 2
    assert [version.version for version in models.versions("foreign")] == [2]


def test_a_storage_that_takes_nothing_leaves_no_version(models, place):
    (place / "storage/models").mkdir(parents=True, exist_ok=True)
    (place / "storage/models/blocked").write_text("a file where the folder should be")
    with pytest.raises(PackageError, match=r"cannot be written to .*/models/blocked"):
        models.publish(card(name="blocked"), WEIGHTS)
    assert "blocked" not in models.names()


def test_a_package_that_lost_files_meanwhile_gets_no_version(models, monkeypatch):
    def write(self, folder, *, real=PackedModel.write):
        real(self, folder)
        folder.remove("model.json")  # by a publisher that took this one for dead

    monkeypatch.setattr(PackedModel, "write", write)
    with pytest.raises(PackageError, match=r"model.json is missing"):
        models.publish(card(name="lost"), WEIGHTS)
    assert "lost" not in models.names()


def test_a_server_that_is_away_leaves_no_package(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowModels(f"http://127.0.0.1:{free_port()}", str(tmp_path))
    with pytest.raises(ServiceError, match=r"MLflow at http://127.0.0.1:\d+ does not answer: .*TRACKING_URI"):
        away.publish(card(), WEIGHTS)
    assert Folder(tmp_path).files() == []
    with pytest.raises(ServiceError):
        away.resolve("digits")


@pytest.fixture
def server(tmp_path):
    """The address of an MLflow server with a SQLite file of its own."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    process = subprocess.Popen(command, env=env, cwd=tmp_path, start_new_session=True)
    try:
        yield wait_for(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def wait_for(url):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health").status_code == 200:
                return url
        time.sleep(0.2)
    raise TimeoutError(f"MLflow did not answer at {url}/health within 120 s")


@pytest.mark.slow
def test_a_server_keeps_versions_of_packages_on_a_disk(server, tmp_path):
    def publish(_):
        models = MlflowModels(server, str(tmp_path / "storage"))
        return models.publish(card(), WEIGHTS, aliases=["candidate"]).version

    with ThreadPoolExecutor(3) as threads:
        assert sorted(threads.map(publish, range(3))) == [1, 2, 3]
    models = MlflowModels(server, str(tmp_path / "storage"))
    newest = models.resolve("digits")
    assert newest.version == 3
    open_package(newest.url, digest=newest.digest)
    models.promote("digits", 1, "candidate")
    assert models.resolve("digits@candidate").version == 1
    with pytest.raises(ModelNotFound):
        models.resolve("digit")


def test_killed_at_any_point_and_three_at_once(place, object_store):
    arguments = [f"sqlite:///{place}/mlflow.db", str(place / "storage"), f"{object_store}/storage"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("publisher.py")), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT / "tests")])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=170,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found["signals"].values()) == {9}
    whole = [name for name, point in found["points"].items() if point == "after create_model_version"]
    killed = {name: versions for name, versions in found["after_kills"].items() if name in found["points"]}
    assert killed == {name: {"1": []} for name in whole}  # whole, and only its alias is missing
    for name in found["points"]:
        newest = found["after_all"][name]
        assert newest == ({"1": [], "2": ["candidate"]} if name in whole else {"1": ["candidate"]})
    assert {found["left"][name] for name in found["points"] if "file" in found["points"][name]} == {2}
    assert set(map(tuple, found["left_after_all"].values())) == {()}  # a later publisher cleans up
    assert found["left_after_all"].keys() == found["points"].keys()
    assert found["crowd"] == [1, 2, 3]
    aliases = sorted(found["after_all"]["crowd"].values())
    assert aliases == [[], [], ["candidate"]]
