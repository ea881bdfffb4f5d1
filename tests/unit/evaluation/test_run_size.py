"""The picture of a run's size."""

import dataclasses
import struct

import pytest

from eagleray.evaluation.run_size import Course, plot_size

BUSY = Course(
    began_at=1000.0,
    ended_at=1270.0,
    sizes=[(1009.0, 4), (1060.0, 3), (1075.0, 4), (1160.0, 0), (1195.0, 2)],
    stretches=[
        (1000.0, 1009.0, "start"), (1009.0, 1060.0, "useful"), (1060.0, 1060.4, "detect"),
        (1060.4, 1160.0, "useful"), (1160.0, 1195.0, "wait"), (1195.0, 1265.0, "useful"),
        (1265.0, 1270.0, "rest"),
    ],
    seconds={"useful": 218.0, "start": 9.0, "detect": 0.4, "wait": 35.0, "checkpoint": 2.6, "rest": 5.0},
    losses=[1060.4],
    resizes=[1075.0],
    suspensions=[(1160.0, 1195.0)],
    commits=[1000.0 + 5 * number for number in range(3, 30)],
)  # fmt: skip


@pytest.mark.parametrize(
    "course",
    [
        Course(0.0, 0.0, []),
        BUSY,
        Course(0.0, 3e6, [(10.0, 4000)], [(0.0, 3e6, "useful")], {"useful": 3e6}, commits=[1.0] * 10_000),
    ],
    ids=["nothing", "a run", "a month"],
)
def test_any_course_makes_a_picture(tmp_path, course):
    plot_size(course, tmp_path / "size.png", title="gpt: goodput 81 %")
    data = (tmp_path / "size.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1200, 720)


def test_everything_that_is_known_is_in_the_picture(tmp_path):
    pictures = set()
    for left_out in ("", "sizes", "losses", "suspensions"):
        course = dataclasses.replace(BUSY, **({left_out: []} if left_out else {}))
        plot_size(course, tmp_path / "size.png", title="t")
        pictures.add((tmp_path / "size.png").read_bytes())
    assert len(pictures) == 4
