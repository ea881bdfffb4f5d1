"""What compression keeps, through real ranks: from one number to another, and into other buckets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression import engine
from eagleray.compression.wire import HEADER
from eagleray.errors import InputError, PeerLost
from eagleray.packaging import flatten, unflatten
from eagleray.specs.compression import CompressionSpec
from eagleray.training.life import Life
from eagleray.training.station import Formation, Station
from eagleray.training.telemetry import Buffer
from integration.ranks.checks import MANY_BUCKETS, Net, assert_equal_on_all_ranks, step
from integration.ranks.runs import digits_spec, train_rank
from support.worlds import run_world

KINDS = ["int8", "topk"]


def hooked(spec: CompressionSpec, bucket_cap_mb: float = 25) -> tuple[DistributedDataParallel, Any]:
    model = DistributedDataParallel(Net(), bucket_cap_mb=bucket_cap_mb)
    return model, compression.attach(model, spec)


def spec_of(kind: str, **more: Any) -> CompressionSpec:
    fields = {"kind": kind, "dense_below": 0, "ratio": 0.1, **more}
    return CompressionSpec.model_validate(CompressionSpec.without_others(fields))


def same_everywhere(value: Any) -> Any:
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def trains(rank: int, world_size: int, kind: str, per_rank: bool) -> tuple[Tensor, Any]:
    """This rank's residual after some steps, and the state that rank 0 has collected."""
    residuals = "per_rank" if per_rank else "mean"
    model, hook = hooked(spec_of(kind, residuals=residuals))
    for seed in range(3):
        step(model, rank, seed)
    state = hook.collect_state()
    assert (state is None) == (rank != 0)
    step(model, rank, 3)  # the engine goes on
    residual = hook.memory.flat("residual", "mean").clone()
    state = hook.collect_state()
    hook.close()
    return residual, None if state is None else flatten(state)


def goes_on(rank: int, world_size: int, kind: str, saved: Any) -> Tensor:
    """This rank's residual with which it goes on, in other buckets; then it trains."""
    model, hook = hooked(spec_of(kind), MANY_BUCKETS)
    assert hook.load_state_dict(unflatten(*saved)) == []
    residual = hook.memory.flat("residual", "mean").clone()
    for seed in range(2):
        step(model, rank, seed)
    assert not torch.equal(hook.memory.flat("residual", "mean"), residual)
    hook.close()
    return residual


@pytest.mark.parametrize(
    ("kind", "per_rank", "before", "after"), [("int8", False, 3, 2), ("topk", True, 2, 3)]
)
def test_the_residual_mass_goes_from_one_number_of_ranks_to_another(kind, per_rank, before, after):
    trained = run_world(before, trains, kind, per_rank)
    wanted = torch.stack([residual.double() for residual, _ in trained]).mean(0)
    loaded = run_world(after, goes_on, kind, trained[0][1])
    found = torch.stack([residual.double() for residual in loaded]).mean(0)
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert abs(found.sum() - wanted.sum()) <= 1e-6 * wanted.abs().sum()


def goes_on_in_other_buckets(rank: int, world_size: int) -> None:
    for kind in KINDS:
        through, hook = hooked(spec_of(kind, residuals="per_rank"))
        for seed in range(3):
            step(through, rank, seed)
        state = same_everywhere(hook.collect_state())
        again, resumed = hooked(spec_of(kind), MANY_BUCKETS)
        resumed.load_state_dict(state)
        for seed in range(3, 6):
            expected, found = step(through, rank, seed), step(again, rank, seed)
            assert all(torch.equal(found[name], expected[name]) for name in expected), (kind, seed)
        resumed.close()
        hook.close()


def test_other_buckets_go_on_to_the_last_bit():
    run_world(2, goes_on_in_other_buckets)


def changes_compressor(rank: int, world_size: int) -> None:
    model, hook = hooked(spec_of("int8"))
    for seed in range(3):
        step(model, rank, seed)
    state = same_everywhere(hook.collect_state())
    hook.close()
    model, hook = hooked(spec_of("int4", block_size=64))
    assert hook.load_state_dict(state) == [], "the residual is all that int8 keeps"
    saved = state["mean"]["residual"]["first.weight"]
    assert torch.equal(
        hook.memory.layout.flat_views(hook.memory.flat("residual", "mean"))["first.weight"], saved
    )
    found = step(model, rank, 3)["first.weight"]
    hook.close()

    plain, hook = hooked(spec_of("none"))
    gradient = step(plain, rank, 3)["first.weight"]
    hook.close()
    assert (found - gradient - saved).abs().max() < 0.4 * gradient.abs().max(), "what int8 owed is sent"

    model, hook = hooked(spec_of("bf16"))
    hook.load_state_dict(state)
    found = step(model, rank, 3)["first.weight"]
    assert not hook.memory.flats["residual"][1].any(), "bf16 would never send it"
    hook.close()
    assert (found - gradient - saved).abs().max() < 0.02 * gradient.abs().max()

    other = DistributedDataParallel(torch.nn.Linear(20, 50))
    hook = compression.attach(other, spec_of("int8"), groups.new_group("other", backend="gloo", timeout_s=30))
    with pytest.raises(InputError, match="of another model: it has first"):
        hook.load_state_dict(state)
    hook.close()


def test_another_compressor_sends_what_the_first_still_owed_and_another_model_is_refused():
    run_world(2, changes_compressor)


def follows(rank: int, world_size: int) -> None:
    """Rank 2 is lost; the others had three ranks' weights, whatever formations broke in between."""
    model, hook = hooked(spec_of("int8"))
    for seed in range(2):
        step(model, rank, seed)
    hook.close()
    pair = torch.distributed.new_group([0, 1])
    if rank == 2:
        return
    owed = hook.memory.flat("residual", "mean").clone()
    smaller = DistributedDataParallel(Net(), process_group=pair)
    later = compression.attach(smaller, spec_of("int8"))
    assert later.follow(hook, num_lost=1, is_even=True).num_ranks == 0
    assert torch.equal(later.memory.flat("residual", "mean"), owed)
    lost = later.follow(hook, num_lost=1, is_even=False)
    torch.testing.assert_close(later.memory.flat("residual", "mean"), owed * 2 / 3)
    assert (lost.num_ranks, lost.share) == (1, 1 / 3)
    assert lost.norm == pytest.approx(float(owed.norm()) / 3)
    later.close()


def test_what_a_rank_owes_keeps_the_weight_that_it_had():
    run_world(3, follows)


def goes_further_in_a_step_that_breaks(rank: int, world_size: int, folder: str) -> None:
    """Both held the same step; rank 1 had done more of the next one when it broke."""
    for kind in ("randomk", "int8_ring", "powersgd"):
        settings = CompressionSpec.without_others(
            {"kind": kind, "dense_below": 0, "rank": 1, "warmup_steps": 2}
        )
        sink = Buffer()
        life = Life(digits_spec(compression=settings), folder, sink, Station())
        life.prepare()
        for formation in (1, 2, 3):
            num_lost = int(formation == 2)  # and another came in its place
            life.join(Formation(formation, rank, world_size, "", world_size, num_lost))
            assert life.parts is not None
            lost = [one["share"] for one in sink.drain() if one["kind"] == "lost"]
            assert lost == ([0.5] if rank == 0 and num_lost else []), "rank 0 tells what was owed"
            hook, found = life.parts.hook, []
            for _ in range(4):
                life.parts.model(torch.randn(5, 64) + rank).square().sum().backward()
                found += [p.grad.clone() for p in life.parts.module.parameters() if p.grad is not None]
                life.parts.optimizer.zero_grad()
            assert_equal_on_all_ranks({str(index): one for index, one in enumerate(found)})
            if rank == 1 and formation == 1:
                for _, named in hook.memory.tensors.values():
                    for name, tensor in named.items():
                        named[name] = 2 * tensor.transpose(-1, 0)
            if rank == 0 and formation == 2:  # where even the first step of a kind has not begun
                hook.memory.flats.clear()
                hook.memory.tensors.clear()
            life.disconnect()
        life.close()


def test_a_step_that_broke_leaves_nothing_unlike_that_all_must_have_alike(tmp_path):
    run_world(2, goes_further_in_a_step_that_breaks, str(tmp_path))


def test_a_run_goes_on_with_another_number_of_ranks_and_another_compressor(tmp_path):
    spec = digits_spec(compression={"kind": "int8", "dense_below": 0})
    cut = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": 5})})
    run_world(2, train_rank, cut, str(tmp_path / "run"))
    other = digits_spec(compression={"kind": "int4", "dense_below": 0})
    resumed = run_world(3, train_rank, other, str(tmp_path / "run"), 2)
    assert resumed[0]["outcome"]["progress"]["step"] == 12
    assert len({one["outcome"]["weights_digest"] for one in resumed}) == 1


def tells_by_bucket(rank: int, world_size: int) -> None:
    model, hook = hooked(spec_of("int8"), MANY_BUCKETS)
    for seed in range(3):
        step(model, rank, seed)
    hook.collect_state()
    total, buckets = hook.stats(), hook.bucket_stats()
    names = [name for key in buckets for name in key]
    assert sorted(names) == sorted(name for name, p in Net().named_parameters() if p.requires_grad)
    first = total.num_buckets - sum(one.num_buckets for one in buckets.values())
    assert first == 1, "of the first step, before DDP cut its buckets anew"
    assert 0 < sum(one.sent_bytes for one in buckets.values()) < total.sent_bytes
    assert 0 < total.sent_bytes < total.uncompressed_bytes
    assert total.probe_bytes == 0
    numel = hook.memory.layout.numel
    assert total.state_bytes == (0 if rank == 0 else 4 * numel + HEADER), (
        "one piece, and rank 0 takes its mean"
    )
    errors = {key: one.relative_error for key, one in buckets.items()}
    assert all((error > 0) == any("weight" in name for name in key) for key, error in errors.items()), errors
    assert all(error is not None for error in errors.values())
    assert min(e for e in errors.values() if e) <= total.relative_error <= max(errors.values())
    hook.close()


def test_bytes_errors_and_times_by_bucket():
    run_world(2, tells_by_bucket)


def trains_automatically(rank: int, world_size: int, folder: str, steps: int, attempt: int) -> Any:
    training = {"steps": steps, "global_batch_size": 50}
    spec = digits_spec(compression={"kind": "auto", "dense_below": 0}, training=training)
    return train_rank(rank, world_size, spec, folder, attempt)


def test_a_run_tells_what_auto_chose_and_its_measuring_is_not_taken_for_gradients(tmp_path):
    result = run_world(2, trains_automatically, str(tmp_path), 300, 1)[0]
    chosen = [record for record in result["records"] if record["kind"] == "compression"]
    assert chosen, "not settled in 300 steps"
    assert chosen[0]["compressor"] in chosen[0]["reason"]
    assert set(chosen[0]["predicted_s"]) >= {"none", "int8"}
    steps = [record for record in result["records"] if record["kind"] == "step"]
    assert all(record["sent_bytes"] <= 1.3 * record["uncompressed_bytes"] for record in steps)
    assert steps[0]["probe_bytes"] > 100_000
    told = [record for record in result["records"] if record["kind"] == "buckets"]
    commits = [record for record in result["records"] if record["kind"] == "commit"]
    assert [record["step"] for record in told] == [record["step"] for record in commits]
    assert all("state_bytes" in record for record in commits)
    buckets = told[-1]["buckets"]
    assert sum(bucket["num_parameters"] for bucket in buckets) == 4
    resumed = run_world(2, trains_automatically, str(tmp_path), 310, 2)[0]
    assert resumed["outcome"]["progress"]["step"] == 310


def comes_late(rank: int, world_size: int) -> list[str]:
    """Rank 0 collects the state, rank 1 with it, rank 2 only when rank 0 has said that it waits."""
    model, hook = hooked(spec_of("int8"))
    step(model, rank, 0)
    engine.PATIENCE_S = 0.1 if rank == 0 else 100.0
    store = torch.distributed.distributed_c10d._get_default_store()
    said: list[str] = []

    def told(text: str, *more: Any) -> None:
        said.append(text % more)
        store.set("told", "yes")

    logging.getLogger("eagleray.compression").warning = told  # pyright: ignore[reportAttributeAccessIssue]
    if rank == 2:
        store.wait(["told"])
    assert (hook.collect_state() is None) == (rank != 0)
    step(model, rank, 1)
    hook.close()
    return said


def test_a_rank_that_does_not_come_for_the_state_is_named():
    (said,), *others = run_world(3, comes_late, timeout_s=60)
    assert said.startswith(
        "compression: rank 0 has called collect_state and waits for rank 2: every rank must"
    )
    assert others == [[], []]


def loses_a_peer(rank: int, world_size: int) -> None:
    model, hook = hooked(spec_of("int8"))
    for seed in range(2):
        step(model, rank, seed)
    if rank == 1:
        return  # and its process ends
    if rank == 0:  # which waits for rank 1's residual
        with pytest.raises(PeerLost):
            hook.collect_state()
    with pytest.raises(PeerLost):
        step(model, rank, 2)
    with pytest.raises(PeerLost):
        hook.collect_state()
    hook.close()


def test_a_peer_that_is_lost_while_the_state_is_collected_holds_nobody_up():
    run_world(3, loses_a_peer, timeout_s=30)
