import math
import struct
import sys

import pytest

from eagleray.evaluation import plot_curves

HISTORY = [{"step": step, "loss": 2 / (1 + step)} for step in range(100)] + [
    {"step": 50, "validation_loss": 0.3, "validation_accuracy": 0.9},
    {"step": 99, "validation_loss": 0.1, "validation_accuracy": 0.97},
]


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"step": 1}],
        [{"step": 1, "loss": 0.5}],
        [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf, "validation_accuracy": None}],
        HISTORY,
        HISTORY[::-1] + HISTORY[20:40],
    ],
    ids=["nothing", "no values", "one point", "not finite", "a run", "unordered, with steps redone"],
)
@pytest.mark.parametrize("events", [[], [(30, "worker lost"), (60, "worker lost")]], ids=["calm", "losses"])
def test_any_history_makes_a_picture(tmp_path, history, events):
    path = tmp_path / "curves.png"
    plot_curves(history, path, title="digits", events=events)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1200, 900)


def test_the_curves_and_events_are_in_the_picture(tmp_path):
    pictures = []
    for history, events in [([], []), (HISTORY[:100], []), (HISTORY, []), (HISTORY, [(30, "worker lost")])]:
        plot_curves(history, tmp_path / "curves.png", title="digits", events=events)
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert len(set(pictures)) == 4


def test_no_global_plotting_state_is_touched(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    plot_curves(HISTORY, tmp_path / "curves.png", title="digits")
    assert ("matplotlib.pyplot" in sys.modules) == loaded
