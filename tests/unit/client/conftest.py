from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.client import stand_in


@pytest.fixture
def ray() -> Iterator[stand_in.Ray]:
    """The stand-in for Ray's job API, empty."""
    with stand_in.running() as ray:
        yield ray
