"""Where things are in this checkout, and how a benchmark and what it starts find them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLATFORM, TESTS = ROOT / "platform", ROOT / "tests"
RESULTS = ROOT / "benchmarks" / "results"


def use(*folders: Path, is_for_children: bool = False) -> None:
    """Have the platform of this checkout found, then modules of these folders, before all others.

    Processes that are started find the platform, too; and the folders, where `is_for_children`.
    """
    found = [str(PLATFORM), *map(str, folders)]
    sys.path[:0] = [path for path in found if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(found if is_for_children else found[:1])
