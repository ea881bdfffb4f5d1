"""A replica without Serve around it: what it answers, and that a lone request waits for nothing."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from eagleray.cluster import loopback_ray260
from eagleray.packaging import Folder, open_package, write_package
from eagleray.serving.model_app import REFUSED, ModelReplica, arguments_of
from eagleray.specs import ServiceSpec
from support.cards import card, weights


@pytest.fixture
def replica(tmp_path, monkeypatch) -> ModelReplica:
    return replica_of(tmp_path, monkeypatch)


def replica_of(tmp_path, monkeypatch, **changes) -> ModelReplica:
    monkeypatch.setattr(loopback_ray260, "keep_replica_to_node_address", lambda: None)
    write_package(Folder(tmp_path / "p"), card(), weights(card()))
    spec = ServiceSpec(kind="service", name="digits", max_batch_size=8, **changes)
    return ModelReplica(arguments_of(spec, str(tmp_path / "p"), open_package(tmp_path / "p").digest))


def test_no_thread_takes_more_cores_than_its_replica_has(tmp_path, monkeypatch):
    """OpenMP's and MKL's numbers are each thread's own; teams of all cores spin longer than they work."""
    import torch

    told = set()
    monkeypatch.setattr(
        torch, "set_num_threads", lambda number: told.add((threading.current_thread().name, number))
    )
    replica_of(tmp_path, monkeypatch, cpus_per_replica=3.5)
    assert told == {(threading.current_thread().name, 3), ("model_0", 3)}


def images(number: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(number)
    return {"image": drawn.random((1, *card().signature.input_shape), np.float32)}


def test_a_lone_request_waits_for_nothing(replica, monkeypatch):
    async def scenario():
        loop, waits = asyncio.get_running_loop(), []
        monkeypatch.setattr(loop, "call_at", lambda *waited: waits.append(waited), raising=True)
        for number in range(20):
            answer = await replica.infer(images(number))
            alone = replica._predictor.predict(images(number))
            assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
        assert waits == [], "nothing sets an alarm"

    asyncio.run(scenario())


def test_requests_at_once_get_their_own_answers(replica):
    async def scenario():
        sizes = []
        compute = replica._batcher._run
        replica._batcher._run = lambda inputs: sizes.append(len(inputs["image"])) or compute(inputs)
        asked = [replica.infer(images(number)) for number in range(40)]
        answers = await asyncio.gather(*asked, replica.infer({"image": np.zeros((1, 2), np.float32)}))
        assert "shape [1, 2]" in answers.pop()[REFUSED]
        for number, answer in enumerate(answers):
            alone = replica._predictor.predict(images(number))
            assert answer["label"].tolist() == alone["label"].tolist()
            assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        assert sizes == [8] * 5

    asyncio.run(scenario())
