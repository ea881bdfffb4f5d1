"""Runs the Python blocks of a Markdown page, top to bottom, as one program: `python blocks.py PAGE`.

Only the standard library is used here: the page may be about an environment that has little else.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and text of each block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in _BLOCK.finditer(text)]


def run(page: Path) -> dict[str, Any]:
    """Run all of them; returns their variables. An error's traceback has the page's own line numbers."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, text in blocks(page):
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)
    return names


if __name__ == "__main__":
    run(Path(sys.argv[1]))
