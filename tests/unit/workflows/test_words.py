"""Numbers as people read them."""

import pytest

from eagleray.workflows.words import clock, count


@pytest.mark.parametrize(
    ("seconds", "text"), [(-2, "0:00"), (0, "0:00"), (7.4, "0:07"), (61, "1:01"), (3723, "1:02:03")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes")])
def test_count(number, text):
    assert count(number, "node") == text
