"""How many replicas keep an objective: of a service that is simulated, with reports a second late."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from eagleray.serving.objective import (
    PANIC_S,
    STABLE_S,
    Decision,
    Memory,
    Need,
    Seen,
    batch_within,
    decide,
)
from eagleray.serving.rates import Count, Peaks, Rates
from eagleray.serving.replica.fit import Line
from support.simulated_service import LINE, MU, STEP_S, TERMS, Gateway, Service


def test_a_tenfold_step_is_decided_within_three_seconds_and_answered_in_one_direction():
    for seed in range(3):
        service = Service(rate=200, seed=seed).run(90)
        assert service.decisions == []
        start_s = service.time_s
        service.run(60, rate=2000)
        when_s, decision = service.decisions[0]
        print(f"{when_s - start_s:.1f} s: {decision}")
        assert when_s - start_s <= 3
        assert "samples" in decision.reason
        reached_s = next(when for when, found in service.decisions if found.wanted >= 2000 / MU)
        assert reached_s - start_s <= 6
        assert service.reversals == 0
        assert service.target <= math.ceil(1.5 * 2000 / (0.75 * MU))
        assert service.backlog < 2 * 16 * service.target, "what had waited is done"


@pytest.mark.parametrize("times", [3, 10])
def test_what_gateways_hold_back_or_turn_away_is_decided_on_within_three_seconds(times):
    """Replicas see what the gateways let through, which is what they can do and not what is asked for."""
    for seed in range(6):
        gateways = [Gateway("g0", 0.2 * seed), Gateway("g1", 0.4)]
        service = Service(rate=0.5 * MU, seed=seed, gateways=gateways).settle(90)
        start_s = service.time_s
        service.run(10, rate=times * MU)
        reached_s = next(when for when, found in service.decisions if found.wanted >= times)
        print(f"{reached_s - start_s:.1f} s: {service.decisions}")
        assert reached_s - start_s <= 3
        service.run(50)
        assert service.reversals == 0
        assert times <= service.target <= math.ceil(1.6 * times / 0.75)


def test_without_word_of_gateways_an_overload_would_be_met_step_by_step():
    service = Service(rate=0.5 * MU, gateways=[Gateway("g", late_s=1e9)]).settle(90)
    start_s = service.time_s
    service.run(60, rate=10 * MU)
    reached_s = next((when for when, found in service.decisions if found.wanted >= 10), math.inf)
    assert reached_s - start_s > 6


@pytest.mark.parametrize("rate", [3, 450, 930, 3000])
def test_constant_load_behind_gateways_is_answered_without_back_and_forth(rate):
    gateways = [Gateway("g0"), Gateway("g1", 0.6)]
    service = Service(rate=rate, gateways=gateways).settle(90).run(600)
    assert service.reversals <= 1
    assert service.target * MU > rate
    assert service.target <= max(1, math.ceil(rate / (0.45 * MU)))


@pytest.mark.parametrize("rate", [3, 450, 930, 3000])
def test_constant_load_is_answered_without_back_and_forth(rate):
    service = Service(rate=rate).settle(90).run(600)
    assert service.reversals <= 1
    assert service.target * MU > rate
    assert service.target <= max(1, math.ceil(rate / (0.45 * MU)))


def test_fewer_only_after_they_would_have_sufficed_for_the_whole_window():
    service = Service(rate=2000).settle(200)
    before, start_s = service.target, service.time_s
    service.run(STABLE_S - 2, rate=200)
    assert service.target >= 2000 / (0.75 * MU)
    service.run(120)
    when_s, decision = next(found for found in service.decisions if found[1].wanted < before - 1)
    assert when_s - start_s >= STABLE_S
    assert "would have sufficed for 60 s" in decision.reason
    assert service.target == 1


def test_a_short_burst_is_no_reason_to_shrink_and_grow_again():
    service = Service(rate=300).settle(90)
    for _ in range(10):
        service.run(5, rate=1500)
        service.run(25, rate=300)
    assert service.reversals == 0


def test_a_backlog_is_drained():
    service = Service(rate=300, terms=replace(TERMS, maximum=8)).run(90)
    service.backlog = 6000
    service.run(1)
    assert service.target > 1
    assert "wait" in service.decisions[-1][1].reason
    service.run(14)
    assert service.backlog < 100
    service.run(90)
    assert service.target == 1
    assert service.reversals == 1


def test_what_a_pass_does_not_show_is_learned_from_requests_that_were_slow():
    """The forward pass is a third of what a request costs."""
    service = Service(rate=300, true_mu=MU / 3).run(60)
    print(*service.decisions, sep="\n")
    assert 300 / (MU / 3) < service.target <= 4
    assert any("it was busy with that" in decision.reason for _, decision in service.decisions)
    service.settle(60).run(600)
    assert service.reversals <= 1
    assert 300 / (MU / 3) < service.target <= 3


def test_a_replica_that_hangs_is_no_reason_for_ever_more():
    service = Service(rate=50, true_mu=0.0).run(60)
    assert service.target <= 2


def test_slow_passes_are_no_reason_for_more_replicas():
    """Where nothing waits, more replicas would answer no sooner."""
    seen = Seen(
        time_s=0, running=1, target=1, line=Line(0.2, 0.0), p95_s=0.3, waited_s=0.01, is_asked=True,
    )  # fmt: skip
    memory = Memory()
    for number in range(200):
        counts = {"r": Count(-1, 0, number / 10, 1 + number / 10)}
        now = replace(seen, time_s=number / 10, came=counts, done=counts)
        decision, memory = decide(now, TERMS, memory)
    assert decision.wanted == 1


def test_from_none_to_one_and_back():
    terms = replace(TERMS, minimum=0, idle_s=20.0)
    service = Service(rate=0, terms=terms).run(19)
    assert service.target == 1
    service.run(2)
    [(_, decision)] = service.decisions
    assert (decision.wanted, decision.reason) == (0, "nothing was asked for 20 s")
    service.run(30)
    assert (service.target, service.replicas) == (0, [])
    service.run(0.2, rate=100)
    assert service.target >= 1, "the first request is answered at once by a start"
    service.run(10)
    assert service.backlog < 100
    service.run(30, rate=0)
    assert service.run(60).target == 0


def test_what_waits_for_a_start_starts_no_more_than_it_needs():
    terms = replace(TERMS, minimum=0)
    service = Service(rate=100, terms=terms).run(5)
    service.run(60, rate=0)
    assert service.target == 0
    service.cold_start_s = 10.0
    service.run(9, rate=50)
    assert service.target == 1, "500 samples are done within a second once it answers"


def test_the_floor_and_the_roof_are_kept_and_named():
    service = Service(rate=50_000, terms=replace(TERMS, maximum=3)).run(4)
    assert service.target == 3
    assert service.decisions[-1][1].reason.endswith("max_replicas is 3")
    raised = Service(rate=1, terms=replace(TERMS, minimum=2, minimum_reason="08:00-20:00 min 2")).run(1)
    assert raised.decisions == [(STEP_S, Decision(2, "08:00-20:00 min 2"))]


def test_after_a_restart_nothing_is_taken_away_before_a_whole_window_was_seen():
    service = Service(rate=2000).run(60)
    before = service.target
    service.memory = Memory()
    service.run(STABLE_S - 1, rate=100)
    assert service.target == before
    service.run(20)
    assert service.target < before


def test_what_was_asked_for_and_never_granted_is_given_up_after_a_moment():
    seen = Seen(time_s=0, running=1, target=1, line=LINE, is_asked=True, besides=Need(4.0, "texts"))
    decision, memory = decide(seen, TERMS, Memory())
    assert decision == Decision(4, "texts")
    for wait_s in (1, PANIC_S - 0.5):
        decision, memory = decide(replace(seen, time_s=wait_s, besides=Need(0.5, "")), TERMS, memory)
        assert decision.wanted == 4
    decision, _ = decide(replace(seen, time_s=PANIC_S + 1, besides=Need(0.5, "")), TERMS, memory)
    assert decision.wanted == 1


@pytest.mark.parametrize(
    ("objective_s", "batch"), [(1.0, 16), (0.052, 16), (0.04, 10), (0.0221, 1), (0.001, 1)]
)
def test_the_largest_batch_of_which_two_keep_the_objective(objective_s, batch):
    assert batch_within(LINE, objective_s, 16) == batch


def test_a_line_without_slope_fills_the_batch():
    assert batch_within(Line(0.01, 0.0), 0.1, 16) == 16
    assert batch_within(Line(0.2, 0.0), 0.1, 16) == 1


def test_a_rate_is_what_came_between_two_reports():
    rates = Rates().after(0.0, {})
    assert rates == Rates()
    rates = rates.after(1.0, {"a": Count(0.0, 0.0, 1.0, 50.0)})
    assert (rates.fast, rates.slow) == (50.0, 50.0)
    for now_s in (1.1, 1.5, 2.0):
        rates = rates.after(now_s, {"a": Count(0.0, 0.0, 1.0, 50.0)})
    assert rates.fast == pytest.approx(50.0), "no report is no news"
    rates = rates.after(3.0, {"a": Count(1.0, 50.0, 2.0, 150.0), "b": Count(2.5, 0.0, 2.5, 0.0)})
    assert (rates.fast, round(rates.slow)) == (100.0, 52), "a step counts at once"
    rates = rates.after(4.0, {"a": Count(2.0, 150.0, 3.0, 260.0), "b": Count(2.5, 0.0, 3.5, 10.0)})
    assert 100 < rates.fast < 110, "chance does not"
    rates = rates.after(30.0, {"a": Count(9.0, 3.0, 30.0, 5.0)})
    assert rates.fast < 1, "it began anew: what it had counted says nothing"


def test_a_peak_lasts_as_long_as_its_span():
    peaks = Peaks(60.0).after(0.0, 5).after(0.5, 7)
    for second in range(1, 60):
        peaks = peaks.after(float(second), 1)
        assert peaks.most == 7
    assert not peaks.is_whole(59.9)
    assert len(peaks.bins) <= 61
    assert peaks.after(62.0, 1).most == 1
