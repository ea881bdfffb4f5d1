"""What the ranks of a test world execute: each check is `check(rank, world_size)` and asserts by itself."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eagleray import compression, groups
from eagleray.compression.kernels import codec
from eagleray.compression.layout import TILE
from eagleray.compression.wire import HEADER, ring_bytes
from eagleray.errors import InputError
from eagleray.specs.compression import CompressionSpec

KINDS = ("none", "fp16", "bf16", "int8", "int4", "int8_ring")
TOLERANCE = {"none": 1e-6, "fp16": 2e-3, "bf16": 2e-2, "int8": 4e-2, "int4": 0.7, "int8_ring": 1.5}
"""Relative to the largest gradient: 1 ulp of the wire's dtype, or a code, twice, and as much from the
residual."""
MANY_BUCKETS = 1e-3
"""MB of a bucket that make one bucket per layer or so."""
_groups: list[groups.Group] = []
CHECKS: dict[str, Callable[[int, int], None]] = {}


def check(function: Callable[[int, int], None]) -> Callable[[int, int], None]:
    CHECKS[function.__name__] = function
    return function


def run_checks(rank: int, world_size: int) -> dict[str, str]:
    """Traceback by name of each check that failed on this rank."""
    torch.set_num_threads(1)
    failures = {}
    for name, function in CHECKS.items():
        try:
            function(rank, world_size)
        except Exception:
            failures[name] = traceback.format_exc()
            if "PeerLost" in failures[name]:
                break
    return failures


class Net(nn.Module):
    """Two layers that always take part, a third that may, and one that is frozen."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(20, 50), nn.Linear(50, 7)
        self.sometimes, self.frozen = nn.Linear(50, 7), nn.Linear(7, 7)
        self.frozen.requires_grad_(False)
        self.to(dtype)

    def forward(self, x: Tensor, uses_third: bool = True) -> Tensor:
        hidden = self.first(x).relu()
        out = self.second(hidden)
        return self.frozen(out + self.sometimes(hidden) if uses_third else out)


def batch(seed: int, rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(1000 * seed + rank)).to(dtype)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def expected(seeds: list[int], world_size: int, dtype=torch.float32, uses_third=lambda rank: True):
    """The mean over ranks of the gradients summed over `seeds`, without any process group."""
    net = Net(dtype)
    for rank in range(world_size):
        for seed in seeds:
            (net(batch(seed, rank, dtype), uses_third(rank)).square().mean() / world_size).backward()
    return gradients(net)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], kind: str) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        error = (gradient - wanted[name]).abs().max() / wanted[name].abs().max()
        assert error <= TOLERANCE[kind], (kind, name, float(error))


def assert_equal_on_all_ranks(found: dict[str, Tensor]) -> None:
    mine = torch.cat([gradient.reshape(-1).double() for gradient in found.values()]).view(torch.int64)
    everyone = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, mine)
    assert all(torch.equal(one, mine) for one in everyone)


def spec_of(kind: str) -> CompressionSpec:
    """Small matrices are compressed too: there are no others here."""
    return CompressionSpec(kind=kind, dense_below=0)  # pyright: ignore[reportArgumentType]


@contextmanager
def attached(kind: str, module: nn.Module, **options: Any) -> Iterator[tuple[Any, compression.Hook]]:
    """A DDP model with its hook; one after the other, so they share a group, whose making takes a while."""
    if not _groups:
        _groups.append(groups.new_group("gradients", backend="gloo", timeout_s=30))
    group = _groups[0]
    model = DistributedDataParallel(module, **options)
    hook = compression.attach(model, spec_of(kind), group)
    try:
        yield model, hook
    finally:
        hook.close()


def step(model: nn.Module, rank: int, seed: int, **forward: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(batch(seed, rank), **forward).square().mean().backward()
    return gradients(model.module)


@check
def every_kind_gives_the_mean_with_one_and_many_buckets(rank, world_size):
    for kind in KINDS:
        for bucket_cap_mb in (25, MANY_BUCKETS):
            with attached(kind, Net(), bucket_cap_mb=bucket_cap_mb) as (model, hook):
                for seed in range(4):  # DDP cuts its buckets anew after the first
                    found = step(model, rank, seed)
                    assert_close(found, expected([seed], world_size), kind)
                    assert_equal_on_all_ranks(found)
                num_buckets = hook.stats().num_buckets
                assert num_buckets == 4 if bucket_cap_mb == 25 else num_buckets > 8


def trained(kind: str, rank: int, steps: int, bucket_cap_mb: float) -> Tensor:
    """Weights after so many steps of SGD, compared with the other ranks' on the way."""
    net = Net()
    with attached(kind, net, bucket_cap_mb=bucket_cap_mb) as (model, _):
        for seed in range(steps):
            found = step(model, rank, seed)
            with torch.no_grad():
                for name, gradient in found.items():
                    net.get_parameter(name).sub_(gradient, alpha=0.02)
            if seed % 10 == 9:
                assert_equal_on_all_ranks(dict(net.named_parameters()))
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@check
def many_steps_give_the_same_bits_on_all_ranks_and_with_any_buckets(rank, world_size):
    for kind in KINDS:
        assert torch.equal(trained(kind, rank, 20, 25), trained(kind, rank, 20, MANY_BUCKETS)), kind


@check
def gradient_as_bucket_view(rank, world_size):
    for kind in KINDS:
        options = {"gradient_as_bucket_view": True, "bucket_cap_mb": MANY_BUCKETS}
        with attached(kind, Net(), **options) as (model, _):
            for seed in range(3):
                found = step(model, rank, seed)
                assert_close(found, expected([seed], world_size), kind)
                assert_equal_on_all_ranks(found)


@check
def no_sync_accumulates_and_sends_once(rank, world_size):
    for kind in KINDS:
        with attached(kind, Net()) as (model, hook):
            for seed in range(0, 9, 3):
                model.zero_grad()
                with model.no_sync():
                    model(batch(seed, rank)).square().mean().backward()
                    model(batch(seed + 1, rank)).square().mean().backward()
                model(batch(seed + 2, rank)).square().mean().backward()
                found = gradients(model.module)
                assert_close(found, expected([seed, seed + 1, seed + 2], world_size), kind)
                assert_equal_on_all_ranks(found)
            assert hook.stats().num_buckets == 3


@check
def unused_parameters_on_some_ranks_and_on_all(rank, world_size):
    for kind in KINDS:
        options = {"find_unused_parameters": True, "bucket_cap_mb": MANY_BUCKETS}
        with attached(kind, Net(), **options) as (model, _):
            for seed in range(4):
                found = step(model, rank, seed, uses_third=rank == 0)
                wanted = expected([seed], world_size, uses_third=lambda rank: rank == 0)
                assert_close(found, wanted, kind)
            model.zero_grad(set_to_none=True)
            model(batch(9, rank), uses_third=False).square().mean().backward()
            assert model.module.sometimes.weight.grad is None


@check
def static_graph(rank, world_size):
    for kind in KINDS:
        options = {"static_graph": True, "bucket_cap_mb": MANY_BUCKETS}
        with attached(kind, Net(), **options) as (model, _):
            for seed in range(4):
                found = step(model, rank, seed)
                assert_close(found, expected([seed], world_size), kind)
                assert_equal_on_all_ranks(found)


@check
def join_takes_ranks_that_end_early(rank, world_size):
    with attached("none", Net()) as (model, hook), model.join():
        for seed in range(3 if rank == 0 else 2):
            found = step(model, rank, seed)
            wanted = expected([seed], world_size)
            if seed == 2:  # rank 0 alone has a gradient
                wanted = {name: one / world_size for name, one in expected([seed], 1).items()}
            assert_close(found, wanted, "none")
    assert hook.stats().num_buckets == 3, "who has ended takes part"


@check
def float64_stays_float64(rank, world_size):
    with attached("none", Net(torch.float64), bucket_cap_mb=MANY_BUCKETS) as (model, _):
        for seed in range(2):
            model.zero_grad()
            model(batch(seed, rank, torch.float64)).square().mean().backward()
            for name, wanted in expected([seed], world_size, torch.float64).items():
                found = model.module.get_parameter(name).grad
                assert found.dtype == torch.float64
                torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-15)


def exchanged(kind: str, value: float, numel: int = 7) -> Tensor:
    """The gradient that all ranks hold after a step in which each had `value` in every element."""
    net = nn.Linear(numel, 1, bias=False)
    with attached(kind, net) as (model, _):
        model(torch.full((1, numel), value)).sum().backward()
    assert net.weight.grad is not None
    return net.weight.grad[0]


@check
def fp16_uses_its_whole_range(rank, world_size):
    smallest, largest = 2.0**-24, 65504.0  # divided by n first the one, summed first the other would be lost
    assert torch.equal(exchanged("fp16", smallest), torch.full((7,), smallest))
    assert torch.equal(exchanged("fp16", largest), torch.full((7,), largest))


@check
def what_is_not_finite_stays_visible_on_all_ranks(rank, world_size):
    for kind in KINDS:
        last = rank == world_size - 1
        assert exchanged(kind, float("nan") if last else 1.0).isnan().all(), kind
        found = exchanged(kind, float("inf") if last else 1.0)
        assert found.isposinf().all() if kind in ("none", "fp16", "bf16") else found.isnan().all(), kind
    assert exchanged("fp16", 1e5).isposinf().all()
    torch.testing.assert_close(exchanged("bf16", 1e30), torch.full((7,), 1e30), rtol=1e-2, atol=0)


@check
def fewer_elements_than_ranks(rank, world_size):
    for kind in KINDS:
        mean = sum(range(world_size)) / world_size
        found = exchanged(kind, float(rank), numel=1)
        torch.testing.assert_close(found, torch.tensor([mean]), rtol=TOLERANCE[kind], atol=0)


@check
def stats_follow_the_formula(rank, world_size):
    for kind in KINDS:
        with attached(kind, Net()) as (model, hook):
            step(model, rank, 0)
            before = hook.stats()
            step(model, rank, 1)
        stats = hook.stats()
        assert stats.num_buckets - before.num_buckets == 1
        plain = ring_bytes(4 * sum(p.numel() for p in model.parameters() if p.requires_grad), world_size)
        assert stats.uncompressed_bytes - before.uncompressed_bytes == plain
        payload = torch.tensor(stats.payload_bytes - before.payload_bytes)
        headers = stats.sent_bytes - before.sent_bytes - int(payload)
        assert headers % HEADER == 0
        stages = 2 if kind != "int8_ring" else 3
        assert 0 < headers <= stages * HEADER * (world_size - 1), "one slice"
        if kind == "int8_ring":
            continue  # counts a sum of the backend's, rounded up
        torch.distributed.all_reduce(payload)
        assert int(payload) == 2 * (world_size - 1) * payload_bytes(kind), kind
        assert 0 < stats.exchange_s < 120
        assert before.sent_bytes < stats.sent_bytes, "a value once read stays"


def payload_bytes(kind: str) -> int:
    """Of Net's gradient: biases as they are."""
    lossy, raw = codec("raw" if kind == "none" else kind), codec("raw")
    parameters = [p for p in Net().parameters() if p.requires_grad]
    assert all(p.numel() <= TILE for p in parameters)
    return sum((lossy if p.dim() > 1 else raw).payload_bytes(p.numel()) for p in parameters)


@check
def buffers_are_kept_from_step_to_step(rank, world_size):
    with attached("bf16", Net(), bucket_cap_mb=MANY_BUCKETS) as (model, hook):
        for seed in range(3):
            step(model, rank, seed)
        plans = dict(hook._engine._plans)
        step(model, rank, 3)
        assert {k: id(p) for k, p in hook._engine._plans.items()} == {k: id(p) for k, p in plans.items()}
        names = [name for key in plans for name in key]
        assert sorted(names) == sorted(n for n, p in Net().named_parameters() if p.requires_grad)


@check
def closing_twice_is_fine_and_a_later_step_fails_clearly(rank, world_size):
    with attached("bf16", Net()) as (model, hook):
        step(model, rank, 0)
        hook.close()
        hook.close()
        for use in (lambda: step(model, rank, 1), hook.collect_state):
            with pytest.raises(
                InputError, match=rf"rank {rank} of \d: its compression hook has been closed .*attach"
            ):
                use()


@check
def refusals(rank, world_size):
    group = groups.new_group("refused", backend="gloo", timeout_s=120)
    none = compression.make_compressor(CompressionSpec(kind="none"))
    model = DistributedDataParallel(Net(), process_group=group.process_group, find_unused_parameters=True)
    with pytest.raises(InputError, match="another process_group"):
        compression.attach(model, none, group)
    mixed = torch.nn.parallel.distributed._MixedPrecision(param_dtype=torch.bfloat16)
    model = DistributedDataParallel(Net())
    model.mixed_precision = mixed  # torch's own constructor wants a GPU for it
    with pytest.raises(InputError, match=r"torch\.autocast"):
        compression.attach(model, none, group)
    model.mixed_precision = None
    hook = compression.attach(model, none, group)
    with pytest.raises(
        InputError, match=r"hook already: compression.attach was called for it before \(none\)"
    ):
        compression.attach(model, none, group)
    assert_close(step(model, rank, 0), expected([0], world_size), "none")
    hook.close()
    groups.close(group)
