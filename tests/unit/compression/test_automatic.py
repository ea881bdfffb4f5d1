"""`auto` without processes: the timeline, the rule, trials, bytes; links are made up."""

import itertools
import math
import statistics
from unittest import mock

import pytest
import torch

from eagleray.compression import make_compressor
from eagleray.compression.automatic import Auto, choice, probe
from eagleray.compression.automatic.timeline import Backward, Leg, Link, Task, replay
from eagleray.compression.automatic.volume import legs_of
from eagleray.compression.compressor import kinds
from eagleray.compression.dry import DryWire, sample_of
from eagleray.compression.layout import Layout
from eagleray.compression.memory import Memory
from eagleray.compression.momentum import Momentum
from eagleray.compression.optimizer import MomentumAdam
from eagleray.compression.wire import Step
from eagleray.specs.compression import ADAM_PAIRS, CompressionSpec

SPEC = CompressionSpec(kind="auto")
CPU_S = {
    "none": 0.2e-9,
    "bf16": 0.4e-9,
    "fp16": 0.5e-9,
    "int8": 1.0e-9,
    "int8_ring": 1.2e-9,
    "int4": 1.6e-9,
    "powersgd": 5e-9,
    "topk": 4e-9,
    "randomk": 1e-9,
}
"""Per element, of the whole way; as compiled kernels do it."""
ALL = (*CPU_S, "onebit_adam", "fourbit_adam")


def layout(n=4) -> Layout:
    """10 M elements in five matrices, with their biases."""
    shapes = [(2048, 1024)] * 5
    named = [(f"{i}.{k}", s) for i, shape in enumerate(shapes) for k, s in (("w", shape), ("b", shape[:1]))]
    return Layout(named, world_size=n)


def predict(rate_bit, candidates, n=4, shared=0.0, compute_s=0.05, latency_s=2e-4):
    """Seconds of a step by candidate, on a made-up link."""
    link = Link(latency_s, rate_bit / 8)
    places = list(layout(n).places.values())
    buckets = [places[at : at + 2] for at in range(0, len(places), 2)]
    backward = Backward(tuple(compute_s * i / 5 for i in range(5)), compute_s)
    seconds = {}
    for kind in candidates:
        tasks = []
        for bucket in buckets:
            legs = legs_of(SPEC, kind, bucket, n)
            cpu = CPU_S[kind] * sum(place.numel for place in bucket) / (len(legs) + 1)
            tasks.append(Task(legs, (cpu,) * (len(legs) + 1), num_slices=8))
        seconds[kind] = replay(backward, tasks, {"swap": link, "sum": link}, at_once=2, shared=shared)
    return seconds


@pytest.mark.parametrize(
    ("rate_bit", "fidelity", "wanted"),
    [
        (100e6, "exact", {"none"}),
        (100e6, "high", {"int8", "int8_ring"}),
        (100e6, "medium", {"int4"}),
        (100e6, "low", {"powersgd", "randomk"}),
        (1e9, "high", {"int8", "int8_ring"}),
        (1e9, "medium", {"int4"}),
        (100e9, "high", {"none"}),
        (100e9, "low", {"none"}),
    ],
)
@pytest.mark.parametrize("n", [2, 4])
def test_links_and_fidelities(rate_bit, fidelity, wanted, n):
    candidates = choice.allowed(fidelity, None, ALL, n)
    assert choice.choose(predict(rate_bit, candidates, n)) in wanted


def test_between_them_the_least_that_is_needed():
    """The faster the link, the less is lost; where the exchange hides behind the backward pass, nothing."""
    candidates = choice.allowed("medium", None, ALL, 4)
    found = [choice.choose(predict(rate, candidates)) for rate in (1e8, 1e9, 4e9, 1e10, 3e10, 1e11)]
    order = [choice.LEAST_LOSSY.index(kind) for kind in found]
    assert order == sorted(order, reverse=True)
    assert found[0] == "int4"
    assert found[-1] == "none"
    assert choice.choose(predict(1e9, candidates, compute_s=5.0)) == "none"


@pytest.mark.parametrize(
    ("fidelity", "optimizer", "wanted"),
    [
        ("exact", "sgd", ("none",)),
        ("high", "adamw", ("none", "bf16", "fp16", "int8", "int8_ring")),
        ("medium", "sgd", ("none", "bf16", "fp16", "int8", "int8_ring", "int4")),
        (
            "medium",
            "momentumadam",
            ("none", "bf16", "fp16", "int8", "int8_ring", "int4", "fourbit_adam", "onebit_adam"),
        ),
        ("low", "adam", ("none", "bf16", "fp16", "int8", "int8_ring", "int4", "powersgd")),
        ("low", None, tuple(kind for kind in choice.LEAST_LOSSY if "adam" not in kind)),
    ],
)
def test_what_fidelity_and_optimizer_allow(fidelity, optimizer, wanted):
    assert choice.allowed(fidelity, optimizer, ALL, 4) == wanted


@pytest.mark.parametrize(("fidelity", "most"), [("exact", 0), ("high", 8), ("medium", 16), ("low", 16)])
def test_int8_ring_is_for_as_many_ranks_as_a_code_is_good_for(fidelity, most):
    found = [n for n in range(2, 200) if "int8_ring" in choice.allowed(fidelity, None, ALL, n)]
    assert found == [*range(2, most + 1)]
    assert set(choice.allowed(fidelity, None, ALL, 2)) - set(choice.allowed(fidelity, None, ALL, 200)) <= {
        "int8_ring"
    }


@pytest.mark.parametrize(
    ("seconds", "current", "wanted"),
    [
        ({"none": 1.0, "bf16": 0.51, "int8": 0.50}, None, "bf16"),  # within 3 % of the fastest, loses less
        ({"none": 1.0, "bf16": 0.53, "int8": 0.50}, None, "int8"),
        ({"none": 1.0, "bf16": 0.96}, None, "none"),  # less than 5 %
        ({"none": 1.0, "bf16": 0.94}, None, "bf16"),
        ({"none": 1.0, "bf16": 0.94}, "none", "none"),  # less than 10 % is no reason to change
        ({"none": 1.0, "bf16": 0.89}, "none", "bf16"),
        ({"none": 1.0, "bf16": 0.55, "int8": 0.50}, "bf16", "bf16"),
        ({"none": 1.0, "bf16": 0.60, "int8": 0.50}, "bf16", "int8"),
        ({"none": 1.0, "int8": 0.97}, "int8", "int8"),  # it pays, if little
        ({"none": 1.0, "int8": 1.01}, "int8", "none"),  # it does not
        ({"none": 1.0}, "int8", "none"),  # not allowed any more
    ],
)
def test_the_rule(seconds, current, wanted):
    assert choice.choose(seconds, current) == wanted


def test_an_alternation_of_near_links_changes_nothing():
    kind, changes = None, 0
    for turn in range(20):
        before = kind
        candidates = choice.allowed("medium", None, ALL, 4)
        kind = choice.choose(predict(1e10 * (1.05 if turn % 2 else 0.95), candidates), kind)
        changes += turn > 0 and kind != before
    assert changes <= 1


def test_a_trial_has_the_rivals_that_may_be_faster_after_all():
    predicted = {"none": 5.3, "bf16": 2.8, "int8": 1.4, "int8_ring": 1.38}
    assert choice.contenders(predicted, "int8") == ("int8",), "a long step is not spent on what is lossier"
    assert choice.contenders({**predicted, "bf16": 2.0}, "int8") == ("int8", "bf16")
    assert choice.contenders({**predicted, "int8": 1.9}, "int8_ring") == ("int8_ring", "int8"), "less lossy"
    predicted = {kind: value / 10 for kind, value in predicted.items()}
    assert choice.contenders(predicted, "int8") == ("int8", "int8_ring")
    predicted = {"none": 0.5, "bf16": 0.51, "fp16": 0.5}
    assert choice.contenders(predicted, "none") == ("none", "bf16"), "as fast, and less lossy"
    predicted = {"none": 1.0, "powersgd": 0.06, "topk": 0.05}
    assert choice.contenders(predicted, "topk", "int8") == ("topk",), "it warms up: a trial would not show it"
    assert choice.contenders(predicted, "powersgd", "none") == ("powersgd", "none"), "what is in use is tried"
    predicted = {"none": 0.08, "bf16": 0.085, "int8": 0.2}
    assert choice.contenders(predicted, "none") == ("none", "bf16")
    assert choice.rounds_of(("none",), 0.1) == (0, 0)


@pytest.mark.parametrize("step_s", [0.002, 0.02, 0.2, 2.0, 20.0])
def test_a_trial_interleaves_and_is_short(step_s):
    tried = ("int8", "bf16", "none")
    least, most = choice.rounds_of(tried, step_s)
    turns, before = [], "none"
    for number in range(least):
        turns += choice.schedule(tried, step_s, number, before)
        before = turns[-1].kind
    counted = [turn.kind for turn in turns if turn.is_counted]
    assert {kind: counted.count(kind) for kind in tried} == dict.fromkeys(tried, len(counted) // 3)
    assert least <= most <= 2 * least
    assert len(turns) * step_s < max(1.3 * choice.TRIAL_S, 12.1 * step_s)
    changes = sum(a != b for a, b in itertools.pairwise(["none", *(turn.kind for turn in turns)]))
    uncounted = [turn for turn in turns if not turn.is_counted]
    assert len(uncounted) == changes, "the first step after a change makes buffers"


def test_bursts_do_not_count():
    assert choice.typical([1.0, 5.0, 1.1, 9.0]) == pytest.approx(1.05)
    assert choice.typical([2.0]) == 2.0


def test_drift():
    assert not choice.has_drifted(1.09, 1.0)
    assert choice.has_drifted(1.11, 1.0)
    assert choice.has_drifted(0.89, 1.0)


def test_the_sentence_says_what_why_and_the_numbers():
    predicted = {"none": 0.59, "bf16": 0.35, "int8": 0.212}
    said = choice.explain("int8", predicted, {"int8": 0.22, "none": 0.585}, "930 Mbit/s with 0.3 ms", 4)
    assert said == (
        "auto chose int8: 2.7 times as fast as none, the fastest allowed; predicted 212 ms a step (none "
        "590 ms, bf16 350 ms) on 4 ranks over 930 Mbit/s with 0.3 ms; measured int8 220 ms, none 585 ms"
    )
    said = choice.explain("none", {"none": 0.08, "bf16": 0.1}, {}, "40 Gbit/s with 0.1 ms", 2)
    assert "auto chose none: compression does not pay (the best would take 1.25 of its step)" in said


def test_replay_of_one_bucket_is_the_sum_of_its_parts():
    link = Link(0.01, 1000.0)
    task = Task((Leg("swap", 500), Leg("swap", 300)), (0.1, 0.2, 0.3))
    found = replay(Backward((0.0,), 2.0), [task], {"swap": link}, at_once=2)
    assert math.isclose(found, 2 + 0.1 + 0.5 + 0.01 + 0.2 + 0.3 + 0.01 + 0.3)


def test_replay_hides_what_happens_at_once():
    link, legs = Link(0.0, 1000.0), (Leg("swap", 1000),)
    both = [Task(legs, (0.1, 0.1)), Task(legs, (0.1, 0.1))]
    found = replay(Backward((0.0, 0.0)), both, {"swap": link}, at_once=2)
    assert math.isclose(found, 0.1 + 2.0 + 0.1), "the second is encoded while the first is on its way"
    found = replay(Backward((0.0, 0.0)), both, {"swap": link}, at_once=1)
    assert math.isclose(found, 2 * (0.1 + 1.0 + 0.1)), "one after the other"
    sliced = Task(legs, (0.4, 0.4), num_slices=4)
    found = replay(Backward((0.0,)), [sliced], {"swap": link}, at_once=2)
    assert math.isclose(found, 0.1 + 1.0 + 0.1), "slices overlap with the link"
    late = replay(Backward((0.0, 5.0)), both, {"swap": link}, at_once=2)
    assert math.isclose(late, 5.0 + 0.1 + 1.0 + 0.1)


def test_replay_charges_the_codec_to_the_backward_pass_where_they_share_a_core():
    task = Task((Leg("swap", 1),), (0.5, 0.5))
    for shared, wanted in ((0.0, 11.0), (1.0, 12.0)):
        link = {"swap": Link(0.0, 1e9)}
        found = replay(Backward((0.0, 10.0)), [task, task], link, at_once=2, shared=shared)
        assert math.isclose(found, wanted, rel_tol=1e-6)


FORMULAS = [kind for kind in choice.LEAST_LOSSY if kind in kinds()]
assert len(FORMULAS) == len(choice.LEAST_LOSSY)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in FORMULAS), ("none", torch.bfloat16), ("none", torch.float64)],
)
def test_bytes_by_formula_are_what_is_handed_to_the_wire(kind, dtype, n):
    spec = CompressionSpec.model_validate(CompressionSpec.without_others({"kind": kind, "warmup_steps": 0}))
    model = Layout([("a", (512, 1024)), ("b", (256,)), ("c", (512, 512))], world_size=n)
    sample, bucket = sample_of(model, probe.SAMPLE)
    gradient = torch.randn(bucket.numel, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for rank in range(n):
        wire = DryWire(n, torch.device("cpu"), rank)
        compressor, before = make_compressor(spec), 0
        if isinstance(compressor, Momentum):
            compressor = compressor.quantised  # all that it sends when the variance has settled
        compressor.bind(sample, wire, Memory(sample, wire.device))
        plan = compressor.plan(bucket, wire.device)
        for number in range(3):  # the first may be unlike the others; those may have two sides in turn
            before = wire.payload_bytes if number == 1 else before
            probe._segments(plan, gradient.clone(), Step(number, 0))
        found.append((wire.payload_bytes - before) / 2)
    legs = legs_of(spec, kind, bucket.places, n, element_bytes=dtype.itemsize)
    assert statistics.mean(found) == pytest.approx(sum(leg.num_bytes for leg in legs), rel=0.01)


def test_codecs_are_measured_on_parameters_like_the_models():
    model = Layout([("a", (64, 64)), ("huge", (1 << 20, 64)), ("b", (64,))], world_size=3)
    sample, bucket = sample_of(model, probe.SAMPLE)
    assert [place.name for place in bucket.places] == ["b", "huge"]
    assert [place.is_dense for place in bucket.places] == [True, False]
    assert probe.SAMPLE / 2 < bucket.numel <= probe.SAMPLE + 64
    small = Layout([("a", (64, 64)), ("s", ())], world_size=3)
    assert sample_of(small, probe.SAMPLE)[1].numel == 64 * 64 + 1
    assert sample.world_size == 3


@pytest.mark.parametrize("n", [2, 3])
def test_efforts_have_a_phase_for_each_leg(n):
    model = Layout([("a", (512, 1024)), ("b", (512,))], world_size=n)
    candidates = {
        kind: make_compressor(CompressionSpec.model_validate({"kind": kind})) for kind in ("none", "int8")
    }
    found = probe.measure_codecs(candidates, SPEC, model, torch.device("cpu"))
    for kind, effort in found.items():
        assert len(effort.cpu_s) == len(legs_of(SPEC, kind, model.places.values(), n)) + 1
        assert all(one > 0 for one in effort.cpu_s)
        assert effort.num_slices >= 1


def bound(n: int, spec: CompressionSpec = SPEC) -> Auto:
    made = Auto(spec)
    model, cpu = Layout([("a", (256, 256)), ("b", (256,))], world_size=n), torch.device("cpu")
    made.bind(model, DryWire(n, cpu), Memory(model, cpu))
    return made


@pytest.mark.parametrize(("second", "has_pairs"), [(0.9, True), (0.8, False)])
def test_the_adam_pairs_are_for_one_beta1(second, has_pairs):
    a, b = (torch.nn.Parameter(torch.ones(1024, 2)) for _ in range(2))
    groups = [{"params": [a]}, {"params": [b], "betas": (second, 0.99)}]
    made = Auto(CompressionSpec(kind="auto", fidelity="medium", warmup_steps=0))
    made.pair(MomentumAdam(groups), {"a": a, "b": b})
    assert {kind for kind in made._possible() if kind in ADAM_PAIRS} == (
        set(ADAM_PAIRS) if has_pairs else set()
    )


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (3, 4)])
def test_codecs_are_measured_anew_where_another_number_of_ranks_has_other_legs(before, after):
    cpu, old, new = torch.device("cpu"), bound(before), bound(after)
    old._measure_codecs(cpu)
    new.load_state_dict(old.state_dict())
    with mock.patch.object(probe, "measure_codecs", wraps=probe.measure_codecs) as measured:
        new._measure_codecs(cpu)
    assert measured.called == (2 in (before, after))
    new._links = dict.fromkeys(("swap", "sum"), Link(1e-3, 1e6))
    new._shared, places = 0.0, list(new.layout.places.values())
    predicted = new._predict_for(Backward((0.0,)), [places], new.candidates())
    assert predicted.keys() == {*choice.allowed("high", None, ALL, after)}
    for kind, effort in new._efforts.items():
        assert len(effort.cpu_s) == len(legs_of(SPEC, kind, places, after)) + 1, kind


class Narrow:
    """In place of exchanges: each takes its bytes' time, and 28 ms more while its connections speed up."""

    def __init__(self, rate_bit, whole):
        self.rate, self.spent, self.sent = rate_bit / 8, 0.0, 0
        with mock.patch.object(probe, "_exchange", self):
            cpu = torch.device("cpu")
            self.links = probe.measure_links(DryWire(4, cpu), ["swap", "sum"], cpu, whole)

    def __call__(self, wire, kind, size, device, counter):
        taken = 1e-3 + size / self.rate + (0.028 if size > 1000 else 0.0)
        self.spent, self.sent = self.spent + taken, self.sent + size
        return taken


@pytest.mark.parametrize("rate_bit", [1e6, 5e6, 12e6, 29e6, 35e6, 100e6, 300e6, 1e9, 1e11])
def test_a_link_is_measured_in_less_than_two_seconds_and_not_taken_for_slower(rate_bit):
    found = Narrow(rate_bit, whole=60_000_000)
    assert found.spent < 2.0
    assert found.links["swap"] == found.links["sum"]
    if rate_bit <= 100e6:
        assert 0.9 < found.links["swap"].bytes_per_s * 8 / rate_bit <= 1.0


@pytest.mark.parametrize("rate_bit", [1e6, 35e6, 100e6, 1e9, 1e11])
@pytest.mark.parametrize("whole", [4_000, 100_000, 400_000, 3_000_000])
def test_a_small_models_link_is_measured_with_little_and_as_well(rate_bit, whole):
    """What its own uncompressed step is predicted to take is nearer to the truth than by larger messages."""
    small, large = Narrow(rate_bit, whole), Narrow(rate_bit, whole=60_000_000)
    assert small.sent <= large.sent
    assert small.sent <= 2 * 2 * (probe.SIZES[0] + 2 * probe.WHOLES * whole)
    truth = whole / (rate_bit / 8) + 0.028
    off = [abs(whole / one.links["swap"].bytes_per_s / truth - 1) for one in (small, large)]
    assert off[0] <= max(off[1], 0.1)
