"""One undisturbed worker, without Ray: what the rows of exactness and of checkpoints compare with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from kit.results import RowFailed


@contextmanager
def trained(spec: Any) -> Iterator[tuple[str, Any]]:
    """A run to its end: its folder, while the block lasts, and the worker, which has told all.

    Raises: RowFailed: it ended otherwise.
    """
    from support.crew import crew

    with TemporaryDirectory() as folder, crew(spec, folder) as alone:
        alone.form(alone.start(1))
        worker = alone.workers[0]
        while worker.outcome is None:
            if worker.look() is None or worker.error is not None:
                raise RowFailed(f"the undisturbed run ended: {worker.error}")
            time.sleep(0.1)  # its answers take time from its steps
        worker.look()  # what it has told last
        yield folder, worker
