"""Shared memory of one connection: slots that the gateway fills and the replica reads in place.

The gateway makes a memfd, hands its descriptor over once, at the handshake, and alone says which slot is
free. Nobody else has the descriptor: when both ends are gone, however they went, so is the memory. A slot is
free again when the stream's last frame came; the ring of a lost connection is never used again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from eagleray.serving.link.frames import FrameError

MIN_RING_BYTES = 32 * 1024
"""Smaller bodies go through the socket: they are copied faster than a slot is found."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MAX_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class RingOptions:
    """How much is shared: memory that was never written to costs nothing."""

    slots: int = 16
    slot_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        is_whole = self.slot_bytes % mmap.PAGESIZE == 0
        if self.slots < 1 or self.slot_bytes < 1 or not is_whole or self.num_bytes > _MAX_BYTES:
            raise ValueError(
                f"{self.slots} slots of {self.slot_bytes} bytes: give one or more, of whole pages of "
                f"{mmap.PAGESIZE} bytes, and {_MAX_BYTES} bytes in all at most"
            )

    @property
    def num_bytes(self) -> int:
        """Of all slots."""
        return self.slots * self.slot_bytes


class Slot:
    """One slot, taken. Whoever took it fills `view` and sends it, or gives it back with `release`."""

    __slots__ = ("_ring", "index", "view")

    def __init__(self, ring: Ring, index: int, view: memoryview) -> None:
        self._ring: Ring | None = ring
        self.index, self.view = index, view

    def release(self) -> None:
        """Let others have it; a second call changes nothing. `view` must not be used any more."""
        if (ring := self._ring) is not None:
            self._ring = None
            ring.put_back(self.index)

    def belongs_to(self, ring: Ring | None) -> bool:
        """Whether it is a slot of this ring, and still taken."""
        return ring is not None and self._ring is ring


class Ring:
    """The gateway's side."""

    def __init__(self, options: RingOptions) -> None:
        self.options = options
        fd = os.memfd_create("eagleray-link", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, options.num_bytes)
            # Sealed: the other end would die of SIGBUS if it read what was cut off.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._views = _mapped(fd, options)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._free = list(range(options.slots - 1, -1, -1))

    @property
    def fd(self) -> int:
        """To be handed over; closed by `forget_fd`."""
        return self._fd

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def forget_fd(self) -> None:
        """Close the descriptor once the other end has its own."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def take(self) -> Slot | None:
        """A free slot, the one that was used last, which caches still hold; None: all are taken."""
        if not self._free:
            return None
        index = self._free.pop()
        return Slot(self, index, self._views[index])

    def put_back(self, index: int) -> None:
        """Called by the slot."""
        if self._views:
            self._free.append(index)

    def close(self) -> None:
        """Take no more; the memory goes with the last slot that somebody holds."""
        self.forget_fd()
        self._views, self._free = [], []


class SharedRing:
    """The replica's side of a ring. Takes the descriptor that was handed over, also where it raises.

    Raises:
        FrameError: it is no sealed memory of that size.
    """

    def __init__(self, fd: int, options: RingOptions) -> None:
        try:
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = 0
            if seals & _SEALS != _SEALS or os.fstat(fd).st_size != options.num_bytes:
                raise FrameError(f"the ring is no sealed memory of {options.num_bytes} bytes")
            try:
                self._views = _mapped(fd, options)
            except OSError as error:
                raise FrameError(f"the ring cannot be mapped: {error}") from error
        finally:
            os.close(fd)
        self._slot_bytes = options.slot_bytes
        self._busy: set[int] = set()

    def begin(self, slot: int, offset: int, length: int) -> memoryview:
        """The bytes of a slot, in use from now on. Raises: FrameError: not inside, or already in use."""
        self._check(slot, offset, length)
        if slot in self._busy:
            raise FrameError(f"slot {slot} of the ring was sent again before it was answered")
        self._busy.add(slot)
        return self._views[slot][offset : offset + length]

    def whole(self, slot: int) -> memoryview:
        """All of a slot that is in use, for its answer."""
        return self._views[slot]

    def end(self, slot: int) -> None:
        """Nobody reads it any more."""
        self._busy.discard(slot)

    def close(self) -> None:
        """Let go of the memory; views that calls still hold keep it until they are gone."""
        self._views = []

    def _check(self, slot: int, offset: int, length: int) -> None:
        if slot >= len(self._views) or offset + length > self._slot_bytes:
            raise FrameError(
                f"bytes {offset} to {offset + length} of slot {slot}: the ring has {len(self._views)} slots "
                f"of {self._slot_bytes} bytes"
            )


def _mapped(fd: int, options: RingOptions) -> list[memoryview]:
    """A view for each slot. The mapping, and its own copy of the descriptor, go with the last of them."""
    whole = memoryview(mmap.mmap(fd, options.num_bytes))
    size = options.slot_bytes
    return [whole[index * size : (index + 1) * size] for index in range(options.slots)]
