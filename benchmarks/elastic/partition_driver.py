"""The driver of the partition row's run, on the head's host: `python partition_driver.py FILE WORKERS`.

It writes what the run's observer hears into FILE, and which nodes the cluster counts as alive.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import place  # noqa: F401  first: it says where eagleray is
import workloads
from recorder import Recorder
from trial import Trial, connect

from eagleray.training.observer import Change


class Written(Recorder):
    """Tells the file, too."""

    def __init__(self, path: Path):
        super().__init__()
        self._file = path.open("a")
        self._lock = threading.Lock()

    def changed(self, change: Change) -> None:
        """As `Recorder.changed`."""
        self.tell(change=dataclasses.asdict(change))
        super().changed(change)

    def records(self, records: Sequence[dict[str, Any]]) -> None:
        """As `Recorder.records`."""
        self.tell(records=list(records))
        super().records(records)

    def failed(self, failures: Mapping[int, Exception], is_retried: bool) -> None:
        """As `Recorder.failed`."""
        super().failed(failures, is_retried)
        self.tell(failed=self.failures[-1])

    def tell(self, **message: Any) -> None:
        """One line."""
        with self._lock:
            self._file.write(json.dumps(message) + "\n")
            self._file.flush()


def main(path: Path, workers: int) -> None:
    """Train until this process is killed, or the run ends."""
    connect()
    import ray

    written = Written(path)
    trial = Trial(workloads.gpt(workers), recorder=written)
    while trial.is_running:
        alive = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
        written.tell(alive=alive)
        time.sleep(0.1)
    sys.exit(f"the run ended: {written.describe()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
