"""What replicas say of themselves arrives as they meant it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from eagleray.serving import signals
from eagleray.serving.model_app import ModelReplica
from eagleray.serving.rates import Count
from eagleray.serving.replica.counts import Counts
from eagleray.serving.replica.fit import Fits, Line
from eagleray.serving.signals import Signals


def said(*points: tuple[float, dict[str, float]], **others):
    """As Serve keeps it: by name and replica, the points of the last seconds."""
    found: dict[str, dict[str, list]] = {}
    for replica, pairs in {"a": points, **others}.items():
        for time_s, values in pairs:
            for name, value in values.items():
                point = SimpleNamespace(timestamp=time_s, value=value)
                found.setdefault(name, {}).setdefault(replica, []).append(point)
    return found


def batcher(waiting: int = 0) -> SimpleNamespace:
    return SimpleNamespace(num_waiting=waiting, counts=Counts())


def test_what_one_replica_says():
    one = batcher(waiting=3)
    for size in (1, 2, 4, 1):
        one.counts.arrived(size)
    one.counts.computed(2, now_s=10.0, seconds=0.2, waited_s=0.1)
    one.counts.late(10.0, 5.0)
    first = signals.stated(one, None, 0, now_s=0.0)
    now = signals.stated(one, Line(0.01, 0.001), 2, now_s=11.0)
    assert all(isinstance(value, float) for value in now.values()), "else Serve takes no more of them"
    assert signals.read(said((1.0, first), (2.0, now))) == Signals(
        came={"a": Count(1.0, 8.0, 2.0, 8.0)},
        done={"a": Count(1.0, 2.0, 2.0, 2.0)},
        per_request=2.0,
        waiting=3.0,
        under_way=3.0,  # 2 at first, then 2 texts more
        texts=1.0,
        line=Line(0.01, 0.001),
        p95_s=5.0,
        waited_s=5.0,
    )


def test_several_replicas_count_by_what_comes_to_them():
    def values(came: float, fixed_s: float) -> dict[str, float]:
        names = {"came": came, "requests": came, "fixed_s": fixed_s, "per_sample_s": 0.0, "p95_s": fixed_s}
        return {f"eagleray_{name}": value for name, value in names.items()}

    found = signals.read(
        said(
            (1.0, values(0, 1.0)), (2.0, values(899, 1.0)), b=[(1.0, values(0, 2.0)), (2.0, values(99, 2.0))]
        )
    )
    assert found.line == Line(pytest.approx(1.1), 0.0)
    assert found.p95_s == pytest.approx(1.1)


def test_nothing_said_is_nothing_known():
    assert signals.read({}) == Signals()
    assert signals.read({"theirs": {"a": []}, "eagleray_came": {"a": []}}) == Signals()


def test_serve_asks_a_replica_by_a_name_that_it_knows():
    import inspect

    from ray.serve._private import replica

    assert '"record_autoscaling_stats"' in inspect.getsource(replica), (
        "Ray moved this; the pin is ray==2.60.*"
    )
    fit = Fits()
    fit.seed(1, 0.5)
    one = SimpleNamespace(_batcher=batcher(), _fit=fit, _texts=SimpleNamespace(num_under_way=4))
    found = asyncio.run(ModelReplica.record_autoscaling_stats(one))
    assert (found["eagleray_texts"], found["eagleray_per_sample_s"]) == (4.0, 0.5)
