"""Where a request's CPU time goes: of the gateways and of the replica, by /proc and by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from blocks import busiest
from kit.results import NotAvailable, RowFailed, Teller
from rig import WARM_S, Rig

SAMPLES_PER_S = 250
SHOWN = 15
_END_S = 30.0


def profile(tell: Teller, reps: int, rig: Rig, *, model: str, connections: int) -> None:
    """Microseconds of CPU time for each request, then the functions in which they are spent."""
    target = rig.requests(model)["ours"]
    parts = {"gateway": rig.ours.gateways(), "replica": rig.ours.replicas(model)}
    for name, pids in parts.items():
        if not pids:
            raise RowFailed(f"no process of {model} is a {name}")
    for number in range(reps):
        told: dict[str, Any] = {}
        for name, pids in parts.items():
            seen, cores = rig.with_cpu(pids, lambda: rig.one(target, connections))
            told[f"{name}_us"] = cores / seen.ok_per_s * 1e6
        tell.repetition(**told)
        tell.note(f"{number + 1}/{reps}: {told}")
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise NotAvailable("there is no py-spy (pip install py-spy)")
    for name, pids in parts.items():
        path, failed = rig.folder / f"{name}.raw", []
        thread = threading.Thread(target=_record, args=(spy, pids[0], path, rig.block_s, failed), daemon=True)
        thread.start()
        rig.one(target, connections)
        thread.join(_END_S)
        if failed or not path.exists():
            raise NotAvailable(f"py-spy could not look at the {name}: {' '.join(failed)[-200:]}")
        tell.facts(**{f"{name}_profile": busiest(path.read_text(), SHOWN)})


def _record(spy: str, pid: int, path: Path, seconds: float, failed: list[str]) -> None:
    # Without pauses: a gateway that stands still for each sample is not the one that is asked about.
    words = [spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds - 2 * WARM_S)))]
    words += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--nonblocking", "--output", str(path)]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + _END_S)
    except subprocess.TimeoutExpired:
        failed.append("it did not end")
        return
    if found.returncode != 0:
        failed.append(found.stderr.strip())
