"""A package's own Python files, made importable in this process."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Mapping

from eagleray.packaging.code_folder import code_folder


def import_carried(files: Mapping[str, bytes]) -> None:
    """Put `files` on this process's import path, in front, as a private copy.

    Never from the package's own folder: Python would write its bytecode there, and a file could change after
    it was verified. A module of the same name that was imported from elsewhere (another package's `net.py`)
    is forgotten, and what was made of it keeps working; an installed library of that name stays.
    """
    if not files:
        return
    root = code_folder(files)
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
