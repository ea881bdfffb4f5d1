"""A commit of the whole state, on one rank: what it begins, what it waits for, what comes back."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eagleray.compression import Stats
from eagleray.data.digests import Entry
from eagleray.errors import CheckpointError
from eagleray.packaging import CheckpointStore, flatten, unflatten
from eagleray.packaging.journal import Journal
from eagleray.training import state
from eagleray.training.progress import Progress
from eagleray.training.samples import Samples
from eagleray.training.snapshot import Committer
from eagleray.training.telemetry import Buffer


def parts(*, rank: int = 0, at_evaluations: bool = False, model: str = "mlp") -> Any:
    """As much of `Parts` as a commit needs. What other ranks would say is in `said`."""
    module = torch.nn.Linear(3, 2)
    said: dict[str, float] = {}
    return SimpleNamespace(
        rank=rank,
        world_size=2,
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        dataset=SimpleNamespace(digest="d" * 64),
        spec=SimpleNamespace(
            checkpoint=SimpleNamespace(at_evaluations=at_evaluations),
            model=SimpleNamespace(kind=model),
            compression=SimpleNamespace(kind="auto"),
        ),
        hook=SimpleNamespace(
            collect_state=lambda: {"owed": torch.ones(2)} if rank == 0 else None,
            load_state_dict=lambda _: [],
            stats=Stats,
        ),
        agreement=SimpleNamespace(
            sum=lambda own: {key: own[key] + said.get(key, 0) for key in own}, average_buffers=lambda _: None
        ),
        said=said,
    )


def take_step(found: Any, samples: Samples, step: int) -> Progress:
    found.module(torch.ones(2, 3)).sum().backward()
    found.optimizer.step()
    samples.add(Entry(step, 8 * (step - 1), 8 * step, 8, (step, 0, 0, 0), False, 2, 1))
    return Progress(step, 8 * step)


@pytest.fixture
def committer(tmp_path):
    return Committer(CheckpointStore(tmp_path / "checkpoints"), Journal(tmp_path), 1, Buffer(), 2)


def test_what_was_committed_comes_back_and_the_journal_leads_there(tmp_path, committer):
    found, samples = parts(), Samples()
    for step in (1, 2, 3):
        progress = take_step(found, samples, step)
        state.commit(found, progress, committer, samples)
        committer.await_copies()
    committer.flush_final()
    segments = Journal(tmp_path).lineage(1, 3)
    assert [(one.parent, len(one.entries)) for one in segments] == [(None, 1), ((1, 1), 1), ((1, 2), 1)]
    other, restored = parts(), Samples()
    store = CheckpointStore(tmp_path / "checkpoints")
    assert state.restore(other, store, restored, pytest.fail) == progress
    assert state.weights_digest(other.module) == state.weights_digest(found.module)
    assert other.optimizer.state_dict()["state"][0]["step"] == 3
    assert (restored.total, restored.parent) == (samples.total, (1, 3))
    other.dataset.digest = "e" * 64
    with pytest.raises(CheckpointError, match="was trained on a dataset with digest dddddddddddd"):
        state.restore(other, store, restored, pytest.fail)


def test_a_failed_commit_leaves_no_hole_in_the_journal(tmp_path, committer, monkeypatch):
    found, samples = parts(), Samples()
    store = committer._store
    for step in (1, 2, 3):
        progress = take_step(found, samples, step)
        with monkeypatch.context() as patched:
            if step == 2:
                error = CheckpointError("the disk is full")
                patched.setattr(store, "commit", lambda *_, raised=error, **__: (_ for _ in ()).throw(raised))
            state.commit(found, progress, committer, samples)
            committer.wait()
    segments = Journal(tmp_path).lineage(1, 3)
    assert [(one.step, len(one.entries)) for one in segments] == [(1, 1), (3, 2)]


def test_other_ranks_write_nothing_and_hear_what_rank_0_has_written(tmp_path, committer):
    found, samples = parts(rank=1), Samples()
    state.commit(found, take_step(found, samples, 1), committer, samples)
    found.said.update(attempt=1, step=1)
    state.commit(found, take_step(found, samples, 2), committer, samples)
    assert not (tmp_path / "checkpoints").exists()
    assert samples.parent == (1, 1)
    assert [fields[0] for fields in samples.segment(1, 2).entries] == [2]


def test_a_search_finds_the_checkpoint_in_the_storage(committer):
    found, samples = parts(at_evaluations=True), Samples()
    state.commit(found, take_step(found, samples, 1), committer, samples)
    assert [record["kind"] for record in committer._sink.drain()] == ["commit"]


@pytest.fixture
def gate(monkeypatch):
    """Copies of what may be copied later begin when it is set."""
    found = threading.Event()

    def held(tree: Any) -> Any:
        assert found.wait(20)
        return flatten(tree)

    monkeypatch.setattr(state, "flatten", held)
    return found


@pytest.mark.parametrize("model", ["mlp", "module"])
def test_what_a_pass_or_a_users_model_may_change_is_that_of_the_commit(committer, gate, model):
    found, samples = parts(model=model), Samples()
    linear, norm = found.module, torch.nn.BatchNorm1d(2)
    found.module = torch.nn.Sequential(linear, norm)
    progress = take_step(found, samples, 1)
    module = {name: one.clone() for name, one in found.module.state_dict().items()}
    momentum = found.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    state.commit(found, progress, committer, samples)
    found.optimizer.param_groups[0]["lr"] = 0.7
    found.module(torch.randn(4, 3)).sum().backward()
    if model == "module":
        with torch.no_grad():
            linear.weight.clamp_(-0.01, 0.01)
    gate.set()
    committer.await_copies()
    take_step(found, samples, 2)
    saved = committer.flush_final()
    weights = saved.tensors("weights")
    assert weights.keys() == module.keys()
    assert all(torch.equal(weights[name], one) for name, one in module.items())
    assert norm.running_mean is not None
    assert not torch.equal(weights["1.running_mean"], norm.running_mean)
    optimizer = unflatten(saved.tensors("optimizer"), saved.state["optimizer"])
    assert torch.equal(optimizer["state"][0]["exp_avg"], momentum)
    assert optimizer["param_groups"][0]["lr"] == 0.1


def test_a_users_compressor_may_change_the_optimizer_in_a_backward_pass(committer, gate):
    found, samples = parts(), Samples()
    found.spec.compression.kind = "mine:Compressor"
    progress = take_step(found, samples, 1)
    threading.Timer(0.02, gate.set).start()
    state.commit(found, progress, committer, samples)
    momentum = found.optimizer.state_dict()["state"][0]["exp_avg"]
    kept = momentum.clone()
    momentum.fill_(-1)
    saved = committer.flush_final()
    assert torch.equal(
        unflatten(saved.tensors("optimizer"), saved.state["optimizer"])["state"][0]["exp_avg"], kept
    )
