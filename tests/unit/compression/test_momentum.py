import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from eagleray.compression.layout import Bucket, Layout
from eagleray.compression.memory import Memory
from eagleray.compression.momentum import Momentum
from eagleray.compression.optimizer import BLOCK_FLOOR, MomentumAdam, flat, pair, thaw
from eagleray.compression.quantised import Quantised
from eagleray.compression.wire import Step
from eagleray.errors import InputError
from support.ranks import in_lockstep, same_bits, wires

CPU = torch.device("cpu")
CODECS = {"onebit_adam": "sign", "fourbit_adam": "int4"}
WARMUP = 5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 50))
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.body(self.embedding(x))


class World:
    """Ranks of one process, each with its replica, optimizer and hook's plans; one or more buckets."""

    def __init__(
        self,
        world_size,
        kind,
        *,
        make_net: Any = Net,
        num_buckets=2,
        warmup_steps=WARMUP,
        groups=None,
        **options,
    ):
        self.world_size = world_size
        torch.manual_seed(0)
        first = make_net()
        self.nets = [copy.deepcopy(first) for _ in range(world_size)]
        named = [(n, p.shape) for n, p in first.named_parameters() if p.requires_grad]
        self.layout = Layout(named, world_size=world_size, dense_below=64)
        names = [name for name, _ in named][::-1]
        cuts = [names[i::num_buckets] for i in range(num_buckets)]
        self.buckets = [self._bucket(cut) for cut in cuts]
        self.wires = wires(world_size)
        self.memories = [Memory(self.layout, CPU) for _ in range(world_size)]
        self.optimizers, self.plans = [], []
        for net, wire, memory in zip(self.nets, self.wires, self.memories, strict=True):
            parameters = groups(net) if groups else net.parameters()
            optimizer = MomentumAdam(parameters, **{"lr": 1e-2, **options})
            compressor = Momentum(kind, CODECS[kind], None, warmup_steps)
            pair(compressor, optimizer, dict(net.named_parameters()))
            compressor.bind(self.layout, wire, memory)
            self.optimizers.append(optimizer)
            self.plans.append([compressor.plan(bucket, CPU) for bucket in self.buckets])
        self.number = 0

    def _bucket(self, names):
        places = tuple(self.layout.places[name] for name in names)
        ends = torch.tensor([0, *(place.numel for place in places)]).cumsum(0).tolist()
        return Bucket(places, tuple(ends[:-1]))

    def exchange(self, *, loss_scale=1.0):
        """What the hook does to the ranks' gradients; the index found bad in each bucket."""
        self.number += 1
        bad = []
        for ordinal, bucket in enumerate(self.buckets):
            flats = []
            for net in self.nets:
                grads = [net.get_parameter(name).grad for name in bucket.key]
                sizes = [place.numel for place in bucket.places]
                flats.append(
                    torch.cat(
                        [
                            torch.zeros(n) if g is None else g.flatten()
                            for g, n in zip(grads, sizes, strict=True)
                        ]
                    )
                )
            step = Step(self.number, ordinal, loss_scale)
            plans = [plans[ordinal] for plans in self.plans]
            found = in_lockstep([plan.run(one, step) for plan, one in zip(plans, flats, strict=True)])
            assert len(set(found)) == 1
            bad.append(found[0])
            assert same_bits(flats)
            for net, values in zip(self.nets, flats, strict=True):
                for place, start in zip(bucket.places, bucket.starts, strict=True):
                    p = net.get_parameter(place.name)
                    p.grad = values[start : start + place.numel].view(p.shape).clone()
            for wire in self.wires:
                wire.settle(self.number + 1)
        return bad

    def step(self, losses, *, loss_scale=1.0):
        for net, loss in zip(self.nets, losses, strict=True):
            net.zero_grad()
            (loss(net) * loss_scale).backward()
        bad = self.exchange(loss_scale=loss_scale)
        for net, optimizer in zip(self.nets, self.optimizers, strict=True):
            for p in net.parameters():
                if p.grad is not None:
                    p.grad /= loss_scale
            optimizer.step()
        for one in self.nets[1:]:
            assert all(
                torch.equal(p, q) for p, q in zip(one.parameters(), self.nets[0].parameters(), strict=True)
            )
        return bad


def losses_of(world_size, seed):
    """One loss for each rank: which of 50 comes after which, in rank's own batch."""
    made = torch.Generator().manual_seed(seed)

    def loss_of(x):
        return lambda net: nn.functional.cross_entropy(net(x), (x * 7 + 3) % 50)

    return [loss_of(torch.randint(0, 50, (32,), generator=made)) for _ in range(world_size)]


def mean_loss(world_size, seed):
    losses = losses_of(world_size, seed)
    return lambda net: torch.stack([loss(net) for loss in losses]).mean()


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_first_phase_is_plain_adam(kind, world_size):
    world = World(world_size, kind, weight_decay=0.1)
    plain = torch.optim.AdamW(copy.deepcopy(world.nets[0]).parameters(), lr=1e-2, weight_decay=0.1)
    parameters = plain.param_groups[0]["params"]
    for seed in range(WARMUP):
        world.step(losses_of(world_size, seed))
        for p, q in zip(parameters, world.nets[0].parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        plain.step()
        assert all(torch.equal(p, q) for p, q in zip(parameters, world.nets[0].parameters(), strict=True))
    assert not any(world.optimizers[0].is_frozen(p) for p in world.nets[0].parameters())
    world.step(losses_of(world_size, WARMUP))
    frozen = {n for n, p in world.nets[0].named_parameters() if world.optimizers[0].is_frozen(p)}
    assert frozen == {"embedding.weight", "body.0.weight", "body.3.weight"}


@pytest.mark.parametrize(("ours", "torchs"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_without_a_compressor_it_is_torchs_to_the_last_bit(ours, torchs):
    torch.manual_seed(0)
    net = Net()
    other = copy.deepcopy(net)
    settings = {"lr": 1e-2, "weight_decay": 0.05, "betas": (0.8, 0.99), "eps": 1e-6}
    groups = [
        [{"params": list(one.body.parameters()), "lr": 3e-3}, {"params": list(one.embedding.parameters())}]
        for one in (net, other)
    ]
    mine = MomentumAdam(groups[0], decoupled_weight_decay=ours, **settings)
    its = torchs(groups[1], **settings)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, 10) for one in (mine, its)]
    for seed in range(10):
        for one, optimizer, schedule in ((net, mine, schedules[0]), (other, its, schedules[1])):
            optimizer.zero_grad()
            mean_loss(1, seed)(one).backward()
            optimizer.step()
            schedule.step()
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_an_uncompressed_momentum_gives_adam_with_a_variance_that_stays(monkeypatch, decoupled, loss_scale):
    monkeypatch.setitem(CODECS, "onebit_adam", "raw")
    monkeypatch.setattr("eagleray.compression.optimizer.BLOCK_FLOOR", 0.0)
    monkeypatch.setattr("eagleray.compression.optimizer.TENSOR_FLOOR", 0.0)
    beta1, beta2, lr, decay, eps = 0.9, 0.99, 1e-2, 0.1, 1e-8
    world = World(
        3, "onebit_adam", weight_decay=decay, betas=(beta1, beta2), decoupled_weight_decay=decoupled
    )
    net = copy.deepcopy(world.nets[0])
    m, v = ({n: torch.zeros_like(p) for n, p in net.named_parameters()} for _ in range(2))
    for seed in range(12):
        world.step(losses_of(3, seed), loss_scale=loss_scale)
        net.zero_grad()
        mean_loss(3, seed)(net).backward()
        with torch.no_grad():
            for name, p in net.named_parameters():
                if p.grad is None:
                    continue
                stays = seed >= WARMUP and not name.endswith("bias") and p.dim() > 1
                g = p.grad + (0 if decoupled else decay * p)
                m[name] = beta1 * m[name] + (1 - beta1) * g
                v[name] = v[name] if stays else beta2 * v[name] + (1 - beta2) * g * g
                t, tv = seed + 1, WARMUP if stays else seed + 1
                root = (v[name] / (1 - beta2**tv)).sqrt() + eps
                p.mul_(1 - lr * decay * decoupled).sub_(lr * m[name] / (1 - beta1**t) / root)
    for p, q in zip(net.parameters(), world.nets[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_what_was_sent_and_what_is_kept_sum_up_to_the_gradients(kind, world_size):
    world = World(
        world_size, kind, make_net=lambda: nn.Linear(64, 40, bias=False), num_buckets=1, warmup_steps=1
    )
    (name,) = world.layout.places
    beta1 = 0.9
    wanted, sent = torch.zeros(40, 64), torch.zeros(40, 64)
    made = torch.Generator().manual_seed(0)
    before = torch.zeros(40, 64)
    for number in range(12):
        gradients = [torch.randn(40, 64, generator=made) + 0.2 for _ in range(world_size)]
        for net, gradient in zip(world.nets, gradients, strict=True):
            net.weight.grad = gradient
        world.exchange()
        for optimizer in world.optimizers:
            optimizer.step()
        m = world.optimizers[0].state[world.nets[0].weight]["exp_avg"]
        if number >= 1:  # a momentum m stands for sum of m - beta1 m-before = (1 - beta1) g
            wanted += torch.stack(gradients).mean(0)
            sent += (m - beta1 * before) / (1 - beta1)
        before = m.clone()
    kept = [world.layout.flat_views(memory.flat("residual", "mean"))[name] for memory in world.memories]
    torch.testing.assert_close(sent + torch.stack(kept).mean(0), wanted, rtol=1e-3, atol=1e-3)
    assert kept[0].any()


@pytest.mark.parametrize("kind", CODECS)
def test_it_learns_like_adamw(kind):
    world = World(2, kind, warmup_steps=40)
    net = copy.deepcopy(world.nets[0])
    plain = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for seed in range(150):
        world.step(losses_of(2, seed))
        plain.zero_grad()
        mean_loss(2, seed)(net).backward()
        plain.step()
    with torch.no_grad():
        final, wanted = (float(mean_loss(8, 999)(one)) for one in (world.nets[0], net))
    assert final < 2 * wanted + 0.02, (final, wanted)


def test_bytes_fall_to_a_thirtieth():
    world = World(2, "onebit_adam", make_net=lambda: nn.Linear(512, 64, bias=False), num_buckets=1)
    sent = []
    for _ in range(WARMUP + 1):
        for net in world.nets:
            net.weight.grad = torch.randn(64, 512)
        before = world.wires[0].payload_bytes
        world.exchange()
        sent.append(world.wires[0].payload_bytes - before)
        for optimizer in world.optimizers:
            optimizer.step()
    assert sent[0] / sent[-1] == pytest.approx(32 / (1 + 16 / 256), rel=0.01)


@pytest.mark.parametrize("kind", CODECS)
def test_rows_that_first_get_a_gradient_late_take_steps_of_a_bounded_size(kind):
    """An embedding's rows that the warm-up never saw: their variance is 0."""
    world = World(
        2, kind, make_net=lambda: nn.Embedding(64, 64), num_buckets=1, warmup_steps=10, weight_decay=0.0
    )
    made = torch.Generator().manual_seed(0)
    net = world.nets[0]
    start = net.weight.detach().clone()
    for number in range(60):
        ids = torch.randint(0, 32 if number < 10 else 64, (16,), generator=made)
        world.step([lambda net, ids=ids: net(ids).square().sum(1).mean()] * 2)
    moved = (net.weight.detach() - start).abs()
    assert moved.max() < 3 * 60 * 1e-2, "a few times the learning rate in each step"
    assert moved[32:].mean() > 0.1 * moved[:32].mean(), "and they learn"


def test_a_variance_that_stays_has_a_floor():
    net = nn.Linear(100, 7, bias=False)
    optimizer = MomentumAdam(net.parameters())
    net.weight.grad = torch.randn(7, 100)
    net.weight.grad[0, :50] = 0
    optimizer.step()
    optimizer.expect(net.weight, momentum=True)
    net.weight.grad = torch.randn(7, 100)
    optimizer.step()
    variance = optimizer.state[net.weight]["exp_avg_sq"]
    assert variance.min() > 0
    assert variance.min() >= BLOCK_FLOOR * variance.view(-1)[:256].mean() * 0.5
    assert optimizer.is_frozen(net.weight)
    net.weight.grad = torch.randn(7, 100)
    optimizer.step()  # a gradient again: plain Adam goes on
    assert not optimizer.is_frozen(net.weight)
    assert optimizer.num_steps(net.weight) == 3


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_seen_by_all_and_enters_nothing(kind, value):
    world = World(3, kind)
    for seed in range(WARMUP + 2):
        world.step(losses_of(3, seed))
    momentum = copy.deepcopy(world.optimizers[0].state_dict())
    for net, loss in zip(world.nets, losses_of(3, 50), strict=True):
        net.zero_grad()
        loss(net).backward()
    world.nets[1].get_parameter("body.0.weight").grad[3, 3] = value
    bad = world.exchange()
    names = [bucket.key[index] for bucket, index in zip(world.buckets, bad, strict=True) if index >= 0]
    assert names == ["body.0.weight"]
    for net in world.nets:
        assert not net.get_parameter("body.0.weight").grad.isfinite().all()
    for memory in world.memories:
        assert memory.flat("residual", "mean").isfinite().all()
    after = world.optimizers[0].state_dict()  # the step is left out
    for index, state in momentum["state"].items():
        assert torch.equal(state["exp_avg"], after["state"][index]["exp_avg"])
    world.step(losses_of(3, 51))
    assert all(p.isfinite().all() for p in world.nets[0].parameters())


@pytest.mark.parametrize("kind", CODECS)
def test_a_run_that_is_resumed_is_equal_to_the_last_bit(kind):
    world, other = World(2, kind), World(2, kind)
    for seed in range(WARMUP + 3):
        world.step(losses_of(2, seed))
    for mine, its in zip(world.memories, other.memories, strict=True):
        its.flat("residual", "mean").copy_(mine.flat("residual", "mean"))
    for index, optimizer in enumerate(other.optimizers):
        other.nets[index].load_state_dict(world.nets[index].state_dict())
        optimizer.load_state_dict(copy.deepcopy(world.optimizers[index].state_dict()))
    for seed in range(20, 25):
        world.step(losses_of(2, seed))
        other.step(losses_of(2, seed))
    for p, q in zip(world.nets[0].parameters(), other.nets[0].parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_parameter_that_comes_late_has_a_warm_up_of_its_own():
    world = World(2, "onebit_adam")
    for seed in range(WARMUP + 4):
        losses = losses_of(2, seed)
        if seed < 3:
            losses = [
                lambda net, loss=loss: loss(net) * 0 + net.body[0].weight.square().sum() for loss in losses
            ]
        world.step(losses)
        if seed < 3:  # as DDP leaves what no rank has used
            for net, optimizer in zip(world.nets, world.optimizers, strict=True):
                optimizer.state.pop(net.embedding.weight, None)
    optimizer, net = world.optimizers[0], world.nets[0]
    assert optimizer.is_frozen(net.body[0].weight)
    assert optimizer.num_steps(net.embedding.weight) == WARMUP + 1
    assert optimizer.is_frozen(net.embedding.weight)


@pytest.mark.parametrize("is_loaded_first", [True, False])
def test_another_adam_goes_on_from_its_state_as_it_would_itself(is_loaded_first):
    world = World(1, "onebit_adam")
    for seed in range(WARMUP + 3):
        world.step(losses_of(1, seed))
    net, optimizer = world.nets[0], world.optimizers[0]
    other = copy.deepcopy(net)
    plain = torch.optim.AdamW(other.parameters(), lr=1e-2)
    assert any(optimizer.is_frozen(p) for p in net.parameters())
    saved = copy.deepcopy(optimizer.state_dict())
    if is_loaded_first:
        plain.load_state_dict(saved)
    thaw(plain)
    if not is_loaded_first:
        plain.load_state_dict(saved)
    assert not any("is_frozen" in state for state in plain.state.values())
    for seed in range(3):
        for one, takes in ((net, optimizer), (other, plain)):
            one.zero_grad()
            mean_loss(1, seed)(one).backward()
            takes.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def test_groups_and_their_settings():
    def groups(net):
        return [
            {"params": net.body.parameters(), "lr": 1e-3, "weight_decay": 0.0},
            {"params": net.embedding.parameters()},
        ]

    world = World(2, "fourbit_adam", groups=groups)
    for seed in range(WARMUP + 3):
        world.step(losses_of(2, seed))
        for optimizer in world.optimizers:
            for group in optimizer.param_groups:
                group["betas"] = (0.9 - 0.01 * seed, 0.999)  # as OneCycleLR does
    world.optimizers[1].param_groups[0]["betas"] = (0.5, 0.999)
    with pytest.raises(InputError, match=r"one beta1 for all parameter groups, not 0\.5, 0\.83"):
        world.step(losses_of(2, 0))


def test_channels_last_parameters():
    conv = nn.Conv2d(8, 16, 3)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    optimizer = MomentumAdam(conv.parameters())
    conv(torch.randn(1, 8, 5, 5)).sum().backward()
    optimizer.step()
    kept = optimizer.state[conv.weight]["exp_avg"]
    ordered = kept.permute(0, 2, 3, 1).flatten()
    assert torch.equal(optimizer.momentum(conv.weight), ordered)
    assert torch.equal(flat(kept.contiguous(), conv.weight), ordered)
    state = optimizer.state_dict()
    state["state"][0] = {n: t.contiguous() for n, t in state["state"][0].items()}
    optimizer.load_state_dict(state)
    for _ in range(2):
        optimizer.expect(conv.weight, momentum=True)
        optimizer.step()
    assert conv.weight.isfinite().all()


def test_wrong_partners_are_told():
    net = nn.Linear(3, 3)
    named = dict(net.named_parameters())
    onebit = Momentum("onebit_adam", "sign")
    with pytest.raises(InputError, match="only MomentumAdam understands, and this is AdamW"):
        pair(onebit, torch.optim.AdamW(net.parameters()), named)
    with pytest.raises(InputError, match="and none was given"):
        pair(onebit, None, named)
    with pytest.raises(InputError, match="this is int8"):
        pair(Quantised("int8"), MomentumAdam(net.parameters()), named)
    pair(Quantised("int8"), torch.optim.AdamW(net.parameters()), named)
    pair(Quantised("int8"), None, named)
    with pytest.raises(InputError, match="needs its optimizer"):
        onebit.beta1()
