"""Modules of benchmarks/, where each benchmark is a folder of its own and no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def module_of(benchmark: str, name: str) -> ModuleType:
    """A benchmark's own: it finds what all benchmarks share, but none of its neighbours."""
    shared("results")
    return _run(f"{benchmark}_benchmark_{name}", FOLDER / benchmark / f"{name}.py")


def shared(name: str) -> ModuleType:
    """One of those that all benchmarks share."""
    if "kit" not in sys.modules:
        _run("kit", FOLDER / "kit" / "__init__.py", parts_in=[str(FOLDER / "kit")])
    return importlib.import_module(f"kit.{name}")


def _run(name: str, path: Path, *, parts_in: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=parts_in)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
