"""Which Eagleray this is: its version and its commit, or where there is none, its source."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import eagleray

_TIMEOUT_S = 5


def code_version() -> str:
    """For instance "0.1.0+git.f0dcb89", with ".changed" where files differ from the commit.

    A copy that no repository holds, as every job has one, is told by its source: "0.1.0+source.1f2e3d4c5b6a".
    """
    package = Path(eagleray.__file__).parent
    commit = _commit(package)
    return f"{eagleray.__version__}+{f'git.{commit}' if commit else f'source.{_source(package)}'}"


def _commit(package: Path) -> str | None:
    """The commit that `package` is a part of; None where no repository tracks it."""
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        changed = ".changed" if _git(package, "status", "--porcelain", "--", ".") else ""
        return _git(package, "rev-parse", "--short=7", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    )
    return done.stdout.strip()


def _source(package: Path) -> str:
    """SHA-256 (12 hex digits) of the package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
