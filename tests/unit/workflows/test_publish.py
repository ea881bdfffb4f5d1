"""From a finished run to a model version; runs that are not, and registries that are away."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch

from eagleray.data import open_dataset
from eagleray.errors import InputError, ServiceError
from eagleray.models import build
from eagleray.packaging import CheckpointStore, Folder, ModelVersion
from eagleray.packaging.store import no_such_model
from eagleray.specs import TrainSpec
from eagleray.specs.model_ref import Ref, pick
from eagleray.workflows import code_version as code_version_module
from eagleray.workflows import models as models_module
from eagleray.workflows import publish as publish_module
from eagleray.workflows.code_version import code_version
from eagleray.workflows.finished import FinishedRun
from eagleray.workflows.publish import main, publish

SPEC = {
    "kind": "train",
    "name": "digits",
    "data": {"kind": "digits", "normalize": "standard"},
    "model": {"kind": "mlp", "hidden": [4]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "compression": {"kind": "bf16"},
    "training": {"steps": 100},
}


class Memory:
    """A model store of one process."""

    def __init__(self, url):
        self.url, self.made, self.cards, self.error = url, [], [], None

    def publish(self, card, weights, code=None, *, aliases=()):
        if self.error:
            raise self.error
        self.cards.append((card, weights, code))
        number = 1 + len(self.made)
        url, digest, now = f"{self.url}/{number}", "d" * 64, time.time()
        version = ModelVersion(
            card.name, number, url, digest, tuple(aliases), card.metrics, card.lineage, now
        )
        self.made.append(version)
        return version

    def names(self):
        return sorted({version.name for version in self.made})

    def versions(self, name):
        found = [version for version in self.made if version.name == name]
        if not found:
            raise no_such_model(name, self.names())
        return found

    def resolve(self, ref):
        return pick(Ref.parse(ref), self.versions(Ref.parse(ref).name))

    def promote(self, name, version, alias):
        pick(Ref(name, version), self.versions(name))


@pytest.fixture(scope="module")
def digits():
    """Signature, digest and weights of the spec's run."""
    spec = TrainSpec.model_validate(SPEC)
    dataset = open_dataset(spec.data)
    return dataset.signature, dataset.digest, build(spec.model, dataset.signature).state_dict()


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("EAGLERAY_STORAGE", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(storage, monkeypatch):
    made = Memory(str(storage / "models"))
    monkeypatch.setattr(publish_module, "models", lambda: made)
    monkeypatch.setattr(models_module, "models", lambda: made)
    return made


@pytest.fixture
def run(storage, digits):
    """The folder of a finished run, `digits-1`."""
    signature, digest, weights = digits
    folder = Folder(storage / "runs/digits-1")
    folder.write_json("spec.json", TrainSpec.model_validate(SPEC).model_dump(mode="json"))
    CheckpointStore(folder.child("checkpoints").url).commit(
        100, attempt=1, tensors={"weights": weights}, state={}
    )
    folder.write_json(
        "report.json",
        {
            "run_id": "digits-1",
            "status": "FINISHED",
            "progress": {"step": 100},
            "dataset_digest": digest,
            "signature": signature.model_dump(mode="json"),
            "metrics": {"test_accuracy": 0.9, "learning_rate": 0.1, "bad": float("inf")},
        },
    )
    return folder


def change(folder, name, **values):
    folder.write_json(name, {**folder.read_json(name), **values})


def test_a_finished_run_becomes_a_version(run, store, digits):
    version = publish("digits-1", aliases=["candidate"], search="search-1")
    assert version.ref == "digits/versions/1"
    ((card, weights, code),) = store.cards
    assert card.name == "digits"
    assert card.signature == digits[0]
    assert card.architecture.arguments["spec"]["hidden"] == [4]
    assert card.metrics == {"test_accuracy": 0.9}
    assert card.lineage.run_id == "digits-1"
    assert card.lineage.dataset_digest == digits[1]
    assert card.lineage.compression == "bf16"
    assert card.lineage.search == "search-1"
    assert card.lineage.code_version.startswith("0.")
    assert all(torch.equal(weights[name], value) for name, value in digits[2].items())
    assert code is None


def test_name_parent_and_metrics_can_be_given(run, store):
    publish("digits-1", aliases=["production"])
    publish("digits-1", name="digits", parent="digits@production", metrics={"test_accuracy": 0.95})
    assert store.cards[1][0].lineage.parent == "digits/versions/1"
    assert store.cards[1][0].metrics == {"test_accuracy": 0.95}
    assert publish("digits-1", name="numbers").name == "numbers"


def test_a_run_before_signatures_were_kept_is_asked_of_its_data(run, store, digits):
    report = run.read_json("report.json")
    del report["signature"]
    run.write_json("report.json", report)
    publish("digits-1")
    assert store.cards[0][0].signature == digits[0]
    change(run, "report.json", dataset_digest="0" * 64)
    with pytest.raises(InputError, match="trained on data with digest 000000000000, and the spec's data now"):
        publish("digits-1")


def test_metrics_of_other_weights_are_left_out(run, store):
    said = []
    change(run, "report.json", progress={"step": 200})
    publish("digits-1", say=said.append)
    assert store.cards[0][0].metrics == {}
    (line,) = said
    assert line.startswith(
        "the newest checkpoint that verifies is of step 100, and the metrics are of step 200"
    )


def no_report(run):
    run.remove("report.json")


def failed(run):
    change(run, "report.json", status="FAILED", error="loss is not finite")


def no_checkpoint(run):
    run.remove("checkpoints")


def damaged(run):
    (name,) = run.child("checkpoints").list()
    run.write_bytes(f"checkpoints/{name}/weights.safetensors", b"rot")


def other_model(run):
    change(run, "spec.json", model={"kind": "mlp", "hidden": [5]})


@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        (no_report, 2, "run digits-1 is not finished: it goes on, or .* eagleray resume digits-1"),
        (
            failed,
            2,
            r"run digits-1 has failed \(loss is not finite\); finish it first: eagleray resume",
        ),
        (no_checkpoint, 1, "run digits-1 has no checkpoint that verifies"),
        (damaged, 1, "run digits-1 has no checkpoint that verifies"),
        (other_model, 1, "run digits-1: its weights do not fit its model: .*size mismatch"),
    ],
)
def test_a_run_that_cannot_be_published_is_one_clear_line(run, store, capsys, trouble, code, said):
    trouble(run)
    assert main(["digits-1"]) == code
    shown = capsys.readouterr()
    assert len([line for line in shown.err.splitlines() if line.startswith("error: ")]) == 1
    assert shown.err.count("\n") == 1
    assert "published" not in shown.out
    assert re.search(said, shown.err)
    assert store.made == []


def test_an_unknown_run_names_those_like_it(run, store, capsys):
    assert main(["digits-9"]) == 2
    assert "error: no run 'digits-9' in" in (err := capsys.readouterr().err)
    assert "runs like it: digits-1" in err


@pytest.mark.parametrize("name", ["a#b", "a/b", "..", "x" * 300])
def test_a_name_that_cannot_be_one(run, store, capsys, name):
    assert main(["digits-1", "--name", name]) == 2
    assert main(["digits-1", "--alias", name]) == 2
    assert main(["digits-1", "--parent", name]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    assert store.made == []


def test_a_parent_that_is_not_there(run, store, capsys):
    assert main(["digits-1", "--parent", "digits@production"]) == 2
    assert "error: no model 'digits'; none is published yet" in capsys.readouterr().err


def test_a_registry_that_is_away_says_how_to_publish_later(run, store, capsys):
    store.error = ServiceError("MLflow at http://x does not answer")
    assert main(["digits-1", "--name", "digits", "--alias", "candidate"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: MLflow at http://x does not answer\n"
    later = "publish it later: eagleray publish digits-1 --name digits --alias candidate"
    assert later in shown.out
    assert run.exists("report.json")


def test_what_is_printed_at_the_end(run, store, capsys):
    assert main(["digits-1", "--alias", "candidate", "--alias", "best"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "published digits/versions/1 (candidate, best): test_accuracy 0.9000"
    assert second.startswith("  package dddddddddddddddd in ")


def test_a_users_own_model_takes_its_code_with_it(run, store, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = "from torch import nn\ndef net(signature): return nn.Linear(64, 10)\n"
    run.write_bytes("code/published_net.py", source.encode())
    own = {"kind": "module", "function": "published_net:net"}
    change(run, "spec.json", model=own, code=["published_net.py"])
    weights = torch.nn.Linear(64, 10).state_dict()
    store_of_run = CheckpointStore(run.child("checkpoints").url)
    store_of_run.commit(100, attempt=2, tensors={"weights": weights}, state={})
    publish("digits-1")
    card, _, code = store.cards[0]
    assert card.architecture.function == "published_net:net"
    assert code.files() == ["published_net.py"]


def test_list_and_promote_as_plain_values(run, store):
    assert models_module.list_models() == []
    publish("digits-1", aliases=["candidate"])
    publish("digits-1")
    (found,) = models_module.list_models()
    assert found["name"] == "digits"
    assert found["versions"] == [1, 2]
    assert found["aliases"] == {"candidate": 1}
    assert found["newest"]["ref"] == "digits/versions/2"
    assert json.loads(json.dumps(found)) == found
    assert models_module.promote("digits", 2, "production") == {
        "name": "digits",
        "version": 2,
        "alias": "production",
    }


def test_a_finished_run_is_opened_once(run, storage):
    opened = FinishedRun.open("digits-1")
    assert opened.signature is opened.signature
    assert opened.weights is opened.weights


def test_the_code_is_named_by_its_commit_or_its_source(tmp_path, monkeypatch):
    copy = tmp_path / "eagleray"
    copy.mkdir()
    (copy / "__init__.py").write_text("")
    monkeypatch.setattr(code_version_module.eagleray, "__file__", str(copy / "__init__.py"))
    alone = code_version()
    assert "+source." in alone
    (copy / "more.py").write_text("x = 1")
    assert code_version() != alone
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert "+source." in code_version()  # a folder that the repository does not track
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    commit = code_version()
    assert "+git." in commit
    assert not commit.endswith(".changed")
    (copy / "more.py").write_text("x = 2")
    assert code_version() == f"{commit}.changed"


def test_a_trials_run_knows_its_search(run, store):
    change(run, "report.json", search="search-7")
    publish("digits-1")
    publish("digits-1", search="search-8")
    assert [card.lineage.search for card, _, _ in store.cards] == ["search-7", "search-8"]


def test_a_damaged_report_and_a_storage_that_refuses(run, store, capsys, monkeypatch):
    run.write_bytes("report.json", b"{")
    assert main(["digits-1"]) == 2
    assert "report.json is damaged" in capsys.readouterr().err

    def refused(*_):
        raise ConnectionError("could not connect")

    monkeypatch.setattr(Folder, "exists", refused)
    assert main(["digits-1"]) == 1
    assert capsys.readouterr().err.endswith("cannot be read: could not connect\n")
