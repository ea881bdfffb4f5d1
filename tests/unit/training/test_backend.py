"""What every rank checks before it trains, and what a failure of it means; Ray is played."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace

import pyarrow.fs
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError

from eagleray.errors import InputError, PeerLost
from eagleray.training import backend_ray260, retrying_ray260
from eagleray.training.backend_ray260 import GroupBackend, GroupConfig


class PlayedWorkers:
    """Two workers; `execute_single_async` returns its call in the place of a reference."""

    def __len__(self):
        return 2

    def execute_single_async(self, rank, function, *arguments):
        return (rank, function, *arguments)


class PlayedRay:
    """References are the calls themselves; `failures` by rank are raised by `get`."""

    def __init__(self, failures):
        self.failures, self.joined = failures, []

    def wait(self, refs, *, num_returns, timeout):
        assert (num_returns, timeout) == (2, 0)
        return [ref for ref in refs if ref[0] in self.failures], []

    def get(self, refs):
        for ref in refs if isinstance(refs, list) else [refs]:
            if ref[0] in self.failures:
                raise self.failures[ref[0]]
            self.joined.append(ref)


def start(monkeypatch, failures):
    played = PlayedRay(failures)
    monkeypatch.setattr(backend_ray260, "ray", played)
    GroupBackend().on_start(PlayedWorkers(), GroupConfig())
    return played.joined


def test_every_rank_looks_for_the_runs_folder(monkeypatch):
    assert start(monkeypatch, {}) == [(rank, backend_ray260.require_folder, rank) for rank in range(2)]


LOST = RayTaskError("join", "Traceback …", PeerLost("rank 0 of 2 could not meet the others"))


def test_a_rank_that_is_lost_meanwhile_counts_as_one_lost_later(monkeypatch):
    death = ActorDiedError()
    with pytest.raises(WorkerGroupError) as caught:
        start(monkeypatch, {0: LOST.as_instanceof_cause(), 1: death})
    found = retrying_ray260.failures(caught.value)
    assert type(found[0]) is PeerLost
    assert str(found[0]) == "rank 0 of 2 could not meet the others"
    assert found[1] is death
    assert retrying_ray260.final_error(caught.value) is None
    assert retrying_ray260.root_failure(found) == (1, death)


def test_input_that_is_wrong_ends_the_run(monkeypatch):
    wrong = InputError("rank 1 does not see the run's folder")
    with pytest.raises(WorkerGroupError) as caught:
        start(monkeypatch, {1: RayTaskError("join", "Traceback …", wrong).as_instanceof_cause()})
    assert retrying_ray260.failures(caught.value) == {1: wrong}
    assert retrying_ray260.final_error(caught.value) is wrong


def test_another_error_is_what_it_is(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        start(monkeypatch, {1: ZeroDivisionError()})


@pytest.fixture
def see(monkeypatch):
    """`see(path)` is what rank 1 does where the run's folder is `path`."""
    monkeypatch.setattr(backend_ray260, "SHARED_FOLDER_S", 0.5)
    monkeypatch.setattr(backend_ray260.ray.util, "get_node_ip_address", lambda: "10.0.0.7")

    def see(path, filesystem=None):
        filesystem = filesystem or pyarrow.fs.LocalFileSystem()
        storage = SimpleNamespace(experiment_fs_path=str(path), storage_filesystem=filesystem)
        context = SimpleNamespace(get_storage=lambda: storage)
        monkeypatch.setattr(backend_ray260.ray.train, "get_context", lambda: context)
        backend_ray260.require_folder(1)

    return see


def test_a_folder_that_this_host_does_not_see_is_refused(see, tmp_path):
    see(tmp_path)
    see("bucket/runs", pyarrow.fs.SubTreeFileSystem("/", pyarrow.fs.LocalFileSystem()))
    with pytest.raises(
        InputError, match=r"rank 1 on host .* \(10\.0\.0\.7\) does not see .*absent: EAGLERAY_ST"
    ):
        see(tmp_path / "absent")


def test_a_folder_may_appear_late(see, tmp_path):
    timer = threading.Timer(0.2, (tmp_path / "late").mkdir)
    timer.start()
    see(tmp_path / "late")
    timer.join()


def test_the_storage_of_rays_context_is_what_we_take_it_for():
    from ray.train.v2._internal.execution.storage import StorageContext

    assert isinstance(StorageContext.experiment_fs_path, property)
    assert "self.storage_filesystem" in inspect.getsource(StorageContext.__init__)
