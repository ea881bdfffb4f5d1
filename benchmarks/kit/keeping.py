"""What is kept of a benchmark in its JSON, and the line that is said of a row."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What this ran on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write(found: Mapping[str, Any], path: Path) -> None:
    """Have the file hold this as JSON; a run that is killed while it writes leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


# ---- of benchmarks that consist of rows


def read_rows(path: Path) -> dict[str, Any]:
    """The rows that an earlier run wrote, each with its `machine` once another has written too."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    elsewhere = {} if found["machine"] == machine() else {"machine": found["machine"]}
    return {name: {**elsewhere, **row} for name, row in found["rows"].items()}


def write_rows(
    rows: Mapping[str, Any], aims: Sequence[Mapping[str, Any]], about: Mapping[str, Any], path: Path
) -> None:
    """Have the file hold the rows, what became of each aim, and what is said of the run as a whole."""
    write({**about, "machine": machine(), "aims": aims, "rows": dict(rows)}, path)


def became(judged: Any, **more: Any) -> dict[str, Any]:
    """What is kept of an aim; `judged` is of the benchmark's own `aims.judge`, `more` what only it keeps."""
    return {
        "row": judged.aim.row,
        "what": judged.aim.what,
        "key": judged.aim.key,
        "goal": judged.goal,
        "median": judged.median if judged.values else None,
        "is_met": judged.is_met,
        "beside": dict(judged.beside),
        **more,
    }


def row_line(name: str, result: Mapping[str, Any]) -> str:
    """One line of a row that is over."""
    said = f"{name}: {len(result['repetitions'])} repetitions in {result['seconds']:.0f} s"
    if result["not_available"]:
        return f"{name}: not available: {result['not_available']}"
    return f"{said}; FAILED: {result['failure']}" if result["failure"] else said
