"""The compiled kernels: built once for each machine, found in the cache afterwards.

A library's name says what it was built from and for, so that an update, another compiler, or a home folder
that machines with different CPUs share never loads the wrong one. It ends with the SHA-256 of the rest (a
loader ignores what follows the last section): a truncated file would end the process with SIGBUS, not with
an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("codecs.cpp", "primitives.cpp", "sparse.cpp", "lowrank.cpp", "ring.cpp")
)
HEADERS = (Path(__file__).with_name("blocks.h"),)
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-w"),
    # The bits of torch: no fused multiply-add, nothing of -ffast-math. The other two let loops be vectorised.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
MACHINE_FLAGS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
"""For this machine's CPU; the first that the compiler takes."""
_DIGEST_BYTES = 32
_COMPILE_S = 120.0


class BuildError(Exception):
    """The library could not be built; the message says why, and what to do."""


def library() -> Path:
    """A library for this machine, from the cache or built now; other processes that want it wait meanwhile.

    Raises:
        BuildError: there is no compiler, it failed, there is no folder for the cache, or it cannot be
            written.
    """
    compiler = _compiler()
    if compiler is None:
        raise BuildError("there is no C++ compiler; install one (apt install g++)")
    path = _path(compiler)
    if path is None:
        raise BuildError("this user has no home folder; set EAGLERAY_CACHE to a folder that can be written")
    if is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path.with_suffix(".lock")):
            if not is_whole(path):  # whoever held the lock may have built it
                _build(compiler, path)
    except OSError as error:
        raise BuildError(
            f"{path.parent} cannot be written ({error.strerror}); set EAGLERAY_CACHE to a folder that can"
        ) from error
    return path


def has_to_compile() -> bool:
    """Whether `library` would take seconds: it is not in the cache, and there is a compiler."""
    compiler = _compiler()
    path = None if compiler is None else _path(compiler)
    return path is not None and not is_whole(path)


def cache_folder() -> Path | None:
    """Where libraries are kept: $EAGLERAY_CACHE/kernels, else eagleray/kernels in the XDG cache folder.

    None: neither is said, and the user has no home (a number without an entry among the users, and no HOME).
    """
    if ours := os.environ.get("EAGLERAY_CACHE"):
        return Path(ours) / "kernels"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return caches / "eagleray" / "kernels"


def is_whole(path: Path) -> bool:
    """Whether the library is there and ends with the digest of the rest."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]


def _compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _path(compiler: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"codecs-{_key(compiler)}.so"


def _key(compiler: str) -> str:
    """What the library depends on, as 16 hex digits."""
    # The compiler's file in place of its version: asking it costs a process (10 ms and more) at each start.
    real = Path(compiler).resolve()
    stat = real.stat()
    parts = [str(real), str(stat.st_size), str(stat.st_mtime_ns), torch.__version__, _cpu(), repr(FLAGS)]
    parts += [repr(MACHINE_FLAGS), *(source.read_text() for source in SOURCES + HEADERS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """The CPU's architecture and, on Linux, its features."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        for line in lines:  # no further than the first CPU: the file is made as it is read
            if line.startswith(("flags", "Features")):
                return platform.machine() + line
    return platform.machine() + platform.processor()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file; ends with the process, however it ends."""
    with path.open("w") as file:
        with contextlib.suppress(
            OSError
        ):  # a file system without locks: each builds, and the last rename wins
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler: str, path: Path) -> None:
    """Compile into a file beside `path`, add the digest, rename. Raises: BuildError, OSError."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        made = Path(folder, path.name)
        said: str | None = ""
        for machine_flags in MACHINE_FLAGS:
            said = _compile([compiler, *FLAGS, *machine_flags, *map(str, SOURCES), "-o", str(made)])
            if said is None:
                break
        if said is not None:
            raise BuildError(f"{compiler} failed ({said}); reinstall it (apt install --reinstall g++)")
        content = made.read_bytes()
        with made.open("ab") as file:
            file.write(hashlib.sha256(content).digest())
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)


def _compile(command: list[str]) -> str | None:
    """Run the compiler; its first line of complaint, or None. Raises: BuildError: it is too slow."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMPILE_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as error:  # other flags would take as long
        raise BuildError(
            f"{command[0]} was not done after {_COMPILE_S:g} s; start again when the machine is less busy"
        ) from error
    if done.returncode == 0:
        return None
    return next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
