from __future__ import annotations

import pickle
import sys
import threading
import types

import pytest

from eagleray import metrics
from eagleray.cluster.emitter import RayEmitter

RUN = {"run": "r1"}


class Recorder:
    """Ray's instruments as far as the emitter sees them; integration/test_metrics_export.py has the real."""

    made: list[Recorder]

    def __init__(self, name, description, tag_keys):
        self.name, self.description, self.tag_keys, self.values = name, description, tag_keys, []
        self.made.append(self)

    def set(self, value, tags):
        self.values.append((value, tags))

    def inc(self, value, tags):
        self.set(value, tags)


@pytest.fixture
def made(monkeypatch) -> list[Recorder]:
    made: list[Recorder] = []
    module = types.ModuleType("ray.util.metrics")
    module.Gauge = type("Gauge", (Recorder,), {"made": made})  # type: ignore[attr-defined]
    module.Counter = type("Counter", (Recorder,), {"made": made})  # type: ignore[attr-defined]
    for name in ("ray", "ray.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "ray.util.metrics", module)
    return made


def test_instruments_are_made_at_first_use_and_kept(made):
    emitter = RayEmitter()
    assert made == []
    emitter.set("eagleray_train_loss", 2, RUN)
    emitter.set("eagleray_train_loss", 1.5, {"run": "r2"})
    emitter.add("eagleray_train_steps_total", 3, RUN)
    assert [(type(i).__name__, i.name, i.tag_keys) for i in made] == [
        ("Gauge", "eagleray_train_loss", ("run",)),
        ("Counter", "eagleray_train_steps_total", ("run",)),
    ]
    assert made[0].values == [(2.0, RUN), (1.5, {"run": "r2"})]
    assert made[1].values == [(3.0, RUN)]
    assert made[0].description == metrics.BY_NAME["eagleray_train_loss"].meaning


def test_every_row_of_the_table_has_an_instrument(made):
    emitter = RayEmitter()
    for row in metrics.TABLE:
        labels = dict.fromkeys(row.labels, "x")
        (emitter.set if row.kind == "gauge" else emitter.add)(row.name, 1.0, labels)
    assert [i.name for i in made] == [row.name for row in metrics.TABLE]


def test_nothing_is_added_for_zero(made):
    RayEmitter().add("eagleray_train_steps_total", 0, RUN)
    assert made == []


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda e: e.set("eagleray_train_joy", 1, RUN), KeyError),
        (lambda e: e.set("eagleray_train_steps_total", 1, RUN), AssertionError),
        (lambda e: e.add("eagleray_train_loss", 1, RUN), AssertionError),
        (lambda e: e.set("eagleray_train_loss", 1, {}), AssertionError),
        (lambda e: e.set("eagleray_train_loss", 1, {**RUN, "rank": "0"}), AssertionError),
        (lambda e: e.add("eagleray_train_steps_total", -1, RUN), AssertionError),
    ],
)
def test_what_the_table_does_not_know_is_our_bug(made, use, error):
    with pytest.raises(error):
        use(RayEmitter())
    assert made == []


def test_it_travels_without_its_instruments(made):
    emitter = RayEmitter()
    emitter.set("eagleray_train_loss", 1, RUN)
    copy = pickle.loads(pickle.dumps(emitter))
    copy.set("eagleray_train_loss", 2, RUN)
    assert [i.values for i in made] == [[(1.0, RUN)], [(2.0, RUN)]]


def test_threads_share_one_instrument(made):
    emitter, start = RayEmitter(), threading.Barrier(4)

    def work():
        start.wait(60)
        emitter.add("eagleray_train_steps_total", 1, RUN)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 1
    assert len(made[0].values) == 4


def test_prometheus_names_follow_its_rules():
    for row in metrics.TABLE:
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
