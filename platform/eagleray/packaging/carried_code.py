"""A package's own Python files, made importable in this process."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path


def import_carried(files: Mapping[str, bytes]) -> None:
    """Put `files` on this process's import path, in front, as a private copy.

    Never from the package's own folder: Python would write its bytecode there, and a file could change after
    it was verified. A module of the same name that was imported from elsewhere (another package's `net.py`)
    is forgotten, and what was made of it keeps working; an installed library of that name stays.
    """
    if not files:
        return
    root = Path(tempfile.mkdtemp(prefix="eagleray-code-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    carried = {name.partition("/")[0].removesuffix(".py") for name in files}
    forgotten = {top for top in carried if not _is_installed(top)}
    for name in list(sys.modules):
        if name.partition(".")[0] in forgotten:
            del sys.modules[name]
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()


def _is_installed(top: str) -> bool:
    """Whether the imported module `top` is Python's own, a library's or ours."""
    libraries = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    file = getattr(sys.modules.get(top), "__file__", None)
    return top == "eagleray" or top in sys.stdlib_module_names or str(file or "").startswith(libraries)
