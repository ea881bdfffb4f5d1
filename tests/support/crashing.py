"""A stand-in for `os` that ends the "process" at the k-th operation, and then loses what was not synced."""

import os


class Crash(BaseException):
    """The process was killed here; no later operation happens either."""


class CrashingOs:
    """Delegates to `os`; operation number `crash_at` (from 0) is cut short.

    With `tears`, power goes too: a file that was written but not synced keeps half of what it was given.
    """

    OPERATIONS = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir")

    def __init__(self, crash_at=None, *, tears=False, error=None):
        self.crash_at, self.tears, self.error = crash_at, tears, error
        self.done = []
        self.is_dead = False
        self._unsynced = {}

    def __getattr__(self, name):
        real = getattr(os, name)
        return (lambda *args: self._call(name, real, *args)) if name in self.OPERATIONS else real

    def _call(self, name, real, *args):
        if self.is_dead:
            raise Crash
        if len(self.done) == self.crash_at:
            self.done.append(name)
            if self.error is not None:
                raise self.error
            self.is_dead = True
            self._die(name, real, *args)
            raise Crash
        self.done.append(name)
        result = real(*args) if name != "fsync" else None  # there is no power to lose here, only time
        self._note(name, args)
        return result

    def _note(self, name, args):
        if name == "write":
            path = os.readlink(f"/proc/self/fd/{args[0]}")
            self._unsynced[path] = True
        elif name == "fsync":
            self._unsynced.pop(os.readlink(f"/proc/self/fd/{args[0]}"), None)
        elif name in ("rename", "replace"):
            moved = {path.replace(args[0], args[1], 1) for path in self._unsynced if path.startswith(args[0])}
            self._unsynced = dict.fromkeys(moved, True) | {
                path: True for path in self._unsynced if not path.startswith(args[0])
            }

    def _die(self, name, real, *args):
        if name == "write":  # torn: half of it arrives
            real(args[0], bytes(args[1])[: len(args[1]) // 2])
        if self.tears:
            for path in self._unsynced:
                if os.path.exists(path):
                    os.truncate(path, os.path.getsize(path) // 2)
