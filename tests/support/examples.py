"""How many examples hypothesis draws: all in `make test-all`, a part of them in `make test`.

A broken rule shows in the first few of them nearly always; the long run looks for the rest.
"""

from __future__ import annotations

from hypothesis import settings


def examples(most: int) -> settings:
    """For a test that draws `most` in the long run."""
    return settings(max_examples=max(8, round(most * settings.default.max_examples / 100)), deadline=None)
