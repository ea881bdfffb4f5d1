"""`verify-run`: a run's folder with checkpoints and journal, exact or not; and what cannot be verified."""

import json

import numpy as np
import pytest
import torch

from eagleray import cli, data
from eagleray.data.digests import Entry, Total, digest
from eagleray.errors import CheckpointError, DataError, InputError
from eagleray.packaging import CheckpointStore, Folder
from eagleray.packaging.journal import Journal, Segment
from eagleray.specs import TrainSpec
from eagleray.workflows.verify import verify

RUN = "digits-1"
BATCH = 64
SPEC = {
    "kind": "train",
    "name": "digits",
    "seed": 5,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [4]},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "training": {"steps": 100, "global_batch_size": BATCH},
}


@pytest.fixture(scope="module")
def dataset():
    return data.open_dataset(TrainSpec.model_validate(SPEC).data)


class Pretended:
    """A run that trains nothing, and writes down what it consumes."""

    def __init__(self, folder, dataset):
        self.folder = folder
        self._digest = dataset.digest
        self._loader = data.Loader(dataset.train, global_batch_size=BATCH, seed=SPEC["seed"])
        self.num_samples = self._loader.num_samples
        self.step = self.consumed = 0
        self.attempt = 1  # and the number of the formation, as in training
        self._parent, self._total, self._entries = None, Total(), []
        self.plant = None
        folder.write_json("spec.json", TrainSpec.model_validate(SPEC).model_dump(mode="json"))

    def train(self, num_steps, world_size=2, *, skipped=()):
        for _ in range(num_steps):
            self.step += 1
            sums, after = np.zeros(5, np.int64), 0
            for rank in range(world_size):
                shard = self._loader.shard(self.consumed, rank, world_size)
                positions, after = shard.positions, shard.consumed
                if self.plant is not None:
                    positions = self.plant(self.step, rank, positions)
                sums += digest(shard.epoch, positions, np.ones(len(positions), np.float32))
            self._entries.append(
                Entry.of(
                    sums,
                    step=self.step,
                    consumed_before=self.consumed,
                    consumed_after=after,
                    is_skipped=self.step in skipped,
                    world_size=world_size,
                    generation=self.attempt,
                )
            )
            self.consumed = after

    def commit(self, **state):
        self._total = self._total.plus(self._entries)
        steps = tuple(entry.to_json() for entry in self._entries)
        Journal(self.folder.url).write(Segment(self.attempt, self.step, self._parent, steps))
        samples = {**self._total.to_json(), "parent": self._parent and list(self._parent)}
        self.store.commit(
            self.step,
            attempt=self.attempt,
            tensors={"weights": {"w": torch.ones(2)}},
            state={
                "progress": {"step": self.step, "consumed": self.consumed},
                "dataset_digest": self._digest,
                "samples": samples,
                **state,
            },
        )
        self._parent, self._entries = (self.attempt, self.step), []

    @property
    def store(self):
        return CheckpointStore(self.folder.child("checkpoints").url)

    def lose_all(self):
        """Start anew from the newest commit, as the next attempt."""
        newest = self.store.newest(lambda _: None)
        self.step, self.consumed = newest.state["progress"]["step"], newest.state["progress"]["consumed"]
        self._parent, self._entries = (newest.attempt, newest.step), []
        self._total = Total.from_json(newest.state["samples"])
        self.attempt += 1


@pytest.fixture
def run(tmp_path, monkeypatch, dataset):
    monkeypatch.setenv("EAGLERAY_STORAGE", str(tmp_path))
    return Pretended(Folder(tmp_path / "runs" / RUN), dataset)


def silent(text):
    pytest.fail(f"said {text!r}")


def test_a_run_through_resizes_losses_and_restarts_is_proven(run):
    run.train(10, 2)
    run.commit()
    run.train(7, 3)
    run.attempt += 1  # survivors of a loss go on: no commit between
    run.train(4, 1)
    run.commit()
    run.train(5, 1)
    run.lose_all()
    run.train(12, 4, skipped=[25])
    run.commit()
    run.store.prune(1)
    found = verify(RUN, silent)
    assert found.is_proven
    assert found.findings == ()
    assert (found.step, found.attempt, found.num_samples) == (33, 3, run.consumed)
    assert found.world_sizes == {1: 4, 2: 10, 3: 7, 4: 12}
    assert found.formations == (1, 2, 3)
    assert found.skipped_steps == (25,)
    first, second = found.epochs
    assert (first.num_samples, first.num_reached) == (run.num_samples, run.num_samples)
    assert (second.num_reached, second.num_without_effect) == (run.consumed - run.num_samples, 64)
    assert first.num_once == run.num_samples
    assert second.num_once == second.num_reached - 64


@pytest.mark.parametrize("kind", ["skipped", "repeated", "swapped"])
def test_one_sample_is_named_and_the_exit_code_is_1(run, kind, capsys):
    own, later = (
        run._loader.shard(6 * BATCH, 0, 2).positions[3],
        run._loader.shard(9 * BATCH, 0, 2).positions[0],
    )

    def plant(step, rank, positions):
        if (step, rank) != (7, 0):
            return positions
        rest = positions if kind == "repeated" else positions[positions != own]
        return rest if kind == "skipped" else np.append(rest, later)

    run.plant = plant
    run.train(12)
    run.commit()
    assert cli.run(["verify-run", RUN]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"run {RUN}, 12 steps: NOT each sample exactly once"
    assert printed[1].startswith("  step 7 ")
    assert (f"sample {own} of epoch 1" in printed[1]) == (kind != "repeated")
    assert (f"sample {later} of epoch 1" in printed[1]) == (kind != "skipped")
    assert cli.run(["verify-run", RUN, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["is_proven"]
    [finding] = document["findings"]
    assert (finding["step"], finding["kind"]) == (7, kind)
    assert finding["missing"] == ([] if kind == "repeated" else [own])
    assert finding["extra"] == ([] if kind == "skipped" else [later])


def test_a_proven_run_prints_a_table(run, capsys):
    run.train(5, 1)
    run.train(3, 2, skipped=[7])
    run.commit()
    assert cli.run(["verify-run", RUN]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"run {RUN}, 8 steps: each sample was taken exactly once",
        "  5 steps by 1 rank, 3 steps by 2 ranks; 1 formation of ranks",
        "  1 step without effect, because the gradient was not finite: 7",
        "epoch  samples  reached  exactly once  missing  repeated  no effect  unknown",
        f"    1  {run.num_samples:7}      512           448        0         0         64        0",
    ]


def test_many_findings_are_cut_and_json_has_all(run, capsys):
    run.plant = lambda step, rank, positions: positions[1:]
    run.train(30, 1)
    run.commit()
    assert cli.run(["verify-run", RUN]) == 1
    assert "  … and 10 findings more (--json has all)" in capsys.readouterr().out.splitlines()
    assert cli.run(["verify-run", RUN, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 30


def test_a_run_that_has_only_begun(run):
    run.commit()
    found = verify(RUN, silent)
    assert found.is_proven
    assert (found.step, found.num_samples, found.epochs, found.formations) == (0, 0, (), ())


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            {"samples": {"count": 640, "lanes": [1, 2, 3, 4], "parent": None}},
            "counts 640 samples, and the journ",
        ),
        (
            {"samples": {"count": 639, "lanes": [1, 2, 3, 4], "parent": None}},
            "counts 639 samples, and the journ",
        ),
        (
            {"progress": {"step": 10, "consumed": 641}},
            "has consumed 641 samples, and the journal ends with step",
        ),
    ],
    ids=["lanes", "count", "cursor"],
)
def test_a_checkpoint_that_says_otherwise(run, state, said):
    run.train(10)
    run.commit(**state)
    [finding] = verify(RUN, silent).findings
    assert (finding.step, finding.kind) == (10, "checkpoint")
    assert f"the checkpoint of step 10 {said}" in finding.text


def test_a_checkpoint_of_another_lineage(run):
    run.train(10)
    run.commit()
    run.train(10)
    total = Total().plus(run._entries)
    run.commit()
    newest = run.store.newest(silent).state["samples"]
    assert newest["parent"] == [1, 10]
    assert total.count == 640
    segment = Journal(run.folder.url).read()[-1]
    run.folder.child("journal").write_bytes(segment.name, Segment(1, 20, None, segment.entries).to_bytes())
    texts = [finding.text for finding in verify(RUN, silent).findings]
    assert any("started from step 10 of attempt 1, and the journal from step 0" in text for text in texts)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_verified(run):
    run.train(10)
    run.commit()
    run.train(10)
    run.commit()
    run.folder.write_bytes("checkpoints/step-00000020.attempt-0001/weights.safetensors", b"x")
    said = []
    assert verify(RUN, said.append).step == 10
    assert said == ["checkpoint step 20: weights.safetensors does not match its manifest; using step 10"]


@pytest.mark.parametrize(("status", "is_proven"), [("FINISHED", False), ("STOPPED", True)])
def test_a_finished_run_whose_last_steps_are_in_no_checkpoint(run, status, is_proven):
    run.train(10)
    run.commit()
    run.folder.write_json("report.json", {"status": status, "progress": {"step": 12}})
    found = verify(RUN, silent)
    assert found.is_proven == is_proven
    if not is_proven:
        assert found.findings[0].text.startswith("the run finished after step 12, and the newest checkpoint")


def test_no_such_run(run):
    with pytest.raises(InputError, match=r"no run 'digits-2' in .*; runs like it: digits-1"):
        verify("digits-2", silent)
    assert cli.run(["verify-run", "digits-2"]) == 2


def test_a_run_without_a_checkpoint(run):
    with pytest.raises(CheckpointError, match=r"has no checkpoint that verifies .*nothing to verify yet"):
        verify(RUN, silent)


@pytest.mark.parametrize("samples", ["absent", None])
def test_a_run_of_an_older_version(run, samples):
    run.train(5)
    state = {"progress": {"step": 5, "consumed": 320}, "dataset_digest": "x"}
    if samples is None:
        state["samples"] = None
    run.store.commit(5, attempt=1, tensors={}, state=state)
    with pytest.raises(InputError, match="kept no sample journal up to step 5: an older eagleray"):
        verify(RUN, silent)


def test_a_segment_that_is_gone_or_no_list_of_entries(run):
    run.train(5)
    run.commit()
    name = "segment-00000005.attempt-0001.json"
    run.folder.child("journal").write_bytes(name, Segment(1, 5, None, ([1, 2],)).to_bytes())
    with pytest.raises(CheckpointError, match=f"segment {name} cannot be read: no entry of a sample journal"):
        verify(RUN, silent)
    run.folder.remove(f"journal/{name}")
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        verify(RUN, silent)


def test_data_that_is_not_the_same_any_more(run):
    run.train(5)
    run.commit(dataset_digest="0" * 64)
    with pytest.raises(
        DataError, match=r"digits-1 was trained on data with digest 000000000000, and .* now has"
    ):
        verify(RUN, silent)
