from __future__ import annotations

import pytest

from support.serving import Pretend, pretend


@pytest.fixture
def ingress() -> Pretend:
    """A new ingress in front of pretending models; inference needs no key."""
    return pretend()
