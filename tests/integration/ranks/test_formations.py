"""Runs whose ranks change while they train: real processes, real groups, kill -9."""

from __future__ import annotations

import random
import time

import pytest

from eagleray.specs.compression import CompressionSpec
from integration.ranks.crews import assert_same, exact, finish
from integration.ranks.runs import weights
from support.crew import crew, end


def test_planned_resizes_change_nothing(undisturbed, folder):
    with crew(exact(), str(folder)) as run:
        run.form(run.start(2))
        for step, size in ((15, 1), (35, 3), (60, 2)):
            run.await_step(step)
            run.resize(size)
        found = finish(run, exact(), folder)
    assert_same(weights(folder), undisturbed)
    assert set(found.world_sizes) == {1, 2, 3}
    assert found.formations == (1, 2, 3, 4)


@pytest.mark.parametrize("replace", [False, True], ids=["smaller", "with a spare"])
def test_a_killed_rank_costs_no_step(undisturbed, folder, replace):
    with crew(exact(), str(folder)) as run:
        run.form(run.start(3))
        for step, rank in ((20, 2), (55, 0)):
            run.await_step(step)
            run.lose(rank, replace=replace)
        found = finish(run, exact(), folder)
    assert_same(weights(folder), undisturbed)
    assert set(found.world_sizes) == ({3} if replace else {1, 2, 3})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))  # 100 resizes and kills
def test_no_schedule_of_resizes_and_kills_changes_anything(folder, tmp_path_factory, seed):
    spec, plain, rng = exact(2500), tmp_path_factory.mktemp("plain"), random.Random(seed)
    with crew(spec, str(plain)) as run:
        run.form(run.start(1))
        run.outcome()
    with crew(spec, str(folder)) as run:
        run.form(run.start(rng.randint(1, 3)))
        for _ in range(10):
            time.sleep(rng.random() * 0.3)  # in a step, a commit, or while the ranks form
            size = len(run.workers)
            if size > 1 and rng.random() < 0.5:
                run.lose(rng.randrange(size), replace=rng.random() < 0.5)
            else:
                run.resize(rng.choice([other for other in (1, 2, 3, 4) if other != size]))
        finish(run, spec, folder)
    assert_same(weights(folder), weights(plain))


@pytest.mark.parametrize(
    "kind",
    [
        "int8",
        "auto",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("topk", "powersgd", "randomk", "fourbit_adam")
        ),
    ],
)
def test_what_compression_keeps_goes_on(folder, kind):
    warm = {} if kind == "auto" else {"warmup_steps": 10}
    settings = CompressionSpec.without_others({"kind": kind, **warm, "dense_below": 16})
    spec = exact(training={"steps": 160, "global_batch_size": 50}, compression=settings)
    with crew(spec, str(folder)) as run:
        run.form(run.start(2))
        run.await_step(20)
        run.resize(3)
        run.await_step(40)
        run.lose(1)
        run.await_step(60)
        run.lose(0, replace=True)
        finish(run, spec, folder)  # its end compares the weights of all ranks


def test_buffers_of_a_step_that_broke_are_put_back(folder):
    model = {"kind": "cnn", "channels": [4], "norm": "batch"}
    spec = exact(steps=80, model=model)
    with crew(spec, str(folder)) as run:
        run.form(run.start(2))
        for step in (20, 40):
            run.await_step(step)
            run.lose(1, replace=True)
        finish(run, spec, folder)


def test_all_lost_go_on_from_the_checkpoint(undisturbed, folder):
    with crew(exact(), str(folder)) as run:
        run.form(run.start(2))
        run.await_step(30)
        for worker in run.workers:
            end(worker)
        run.form(run.start(2), num_lost=2)
        finish(run, exact(), folder)
    assert_same(weights(folder), undisturbed)
