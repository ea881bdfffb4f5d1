"""How a listener leaves a port that it shares with others: no connection is reset, and none has to wait.

A connection is a listener's from its first packet (SYN) on, and is reset with it, even where its client has
been told that it is made. So two small programs, in the kernel's classic BPF, see to it that a listener
begins no more of them for some round trips before it is closed:

- one for all listeners of the port chooses among the others (`turn_away`);
- a filter of the listener drops what comes to it all the same (`pass_over`). Its client sends that again
  after a second, and comes to another listener by then.

The first needs the listener's place in the kernel's list, which nothing tells: a connection of our own shows
it. There is one such program for a port, so listeners leave one after another (`turn`).

Source: Linux, net/core/sock_reuseport.c and Documentation/networking/filter.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

# Of asm-generic/socket.h; Python has no names for them.
_ATTACH_FILTER, _DETACH_FILTER, _ATTACH_TO_PORT, _DETACH_FROM_PORT = 26, 27, 51, 68
# Instructions of linux/bpf_common.h.
_LOAD, _LOAD_HALF, _LOAD_BYTE, _AND, _MODULO, _ADD = 0x20, 0x28, 0x30, 0x54, 0x94, 0x04
_IF_EQUAL, _IF_AT_LEAST, _RETURN, _RETURN_IT = 0x15, 0x35, 0x06, 0x16
_NETWORK_HEADER, _RANDOM = 0xFFF00000, 0xFFFFF000 + 56  # a filter of a TCP socket begins with the TCP header
_PORT_AT, _FLAGS_AT, _SYN, _SYN_AND_ACK = 0, 13, 0x02, 0x12
_ALL, _NONE = 0xFFFFFFFF, 0  # of a packet
_BY_HASH = 0xFFFFFFFF  # no listener has that number, so the kernel chooses as it does without a program
_PROBE_S = 0.02
"""A connection within the machine is made before `connect` returns; more than that is for a busy kernel."""
_POLL_S = 0.002
_TURN_S = 2.0

_Instruction = tuple[int, int, int, int]


def pass_over(listener: socket.socket) -> None:
    """Begin no more connections on the listener; those begun are completed. Raises: OSError."""
    _attach(
        listener,
        _ATTACH_FILTER,
        (_LOAD_BYTE, 0, 0, _FLAGS_AT),
        (_AND, 0, 0, _SYN_AND_ACK),
        (_IF_EQUAL, 0, 1, _SYN),
        (_RETURN, 0, 0, _NONE),
        (_RETURN, 0, 0, _ALL),
    )


def clear(sock: socket.socket) -> None:
    """Take the listener's filter from a connection, which has it unless it is older."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


async def turn(file: Path) -> int | None:
    """Wait until nobody else has the turn to leave, for 2 s at most.

    Returns:
        A descriptor of the file; the turn is over when it is closed. None if it took too long.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until_s = time.monotonic() + _TURN_S
    try:
        while time.monotonic() < until_s:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            await asyncio.sleep(_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


async def turn_away(listener: socket.socket, num_listeners: int) -> None:
    """Have new connections go to the other listeners of the port, until `release`.

    Raises:
        OSError: the kernel has no such programs (Linux before 5.3, say).
    """
    release(listener)  # first: what could not be taken back must not be attached
    for index in range(num_listeners):
        if await _is_at(listener, index):
            _attach(
                listener,
                _ATTACH_TO_PORT,
                (_LOAD, 0, 0, _RANDOM),
                (_MODULO, 0, 0, num_listeners - 1),
                (_IF_AT_LEAST, 0, 1, index),
                (_ADD, 0, 0, 1),
                (_RETURN_IT, 0, 0, 0),
            )
            return
    release(listener)


def release(listener: socket.socket) -> None:
    """Have the kernel choose among all listeners of the port. Raises: OSError: it has no such programs."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, _DETACH_FROM_PORT, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # there is none
            raise


async def _is_at(listener: socket.socket, index: int) -> bool:
    """Whether it is the listener that has the index: a connection of ours is sent there, and dropped here."""
    address = listener.getsockname()
    with socket.socket(listener.family) as probe:
        probe.setblocking(False)
        probe.bind((address[0], 0))
        port = probe.getsockname()[1]
        _attach(
            listener,
            _ATTACH_FILTER,
            (_LOAD_HALF, 0, 0, _PORT_AT),
            (_IF_EQUAL, 0, 1, port),
            (_RETURN, 0, 0, _NONE),
            (_RETURN, 0, 0, _ALL),
        )
        _attach(
            listener,
            _ATTACH_TO_PORT,
            (_LOAD_HALF, 0, 0, _NETWORK_HEADER + (40 if listener.family == socket.AF_INET6 else 20)),
            (_IF_EQUAL, 0, 1, port),
            (_RETURN, 0, 0, index),
            (_RETURN, 0, 0, _BY_HASH),
        )
        until_s = time.monotonic() + _PROBE_S
        while True:
            is_last = time.monotonic() >= until_s
            found = probe.connect_ex(address)
            if found in (0, errno.EISCONN):
                return False
            if found not in (errno.EINPROGRESS, errno.EALREADY):
                raise OSError(found, os.strerror(found))
            if is_last:
                return True
            await asyncio.sleep(_POLL_S)


def _attach(sock: socket.socket, option: int, *instructions: _Instruction) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)  # struct sock_filter
    kept = ctypes.create_string_buffer(code, len(code))  # until the kernel has copied it
    program = struct.pack("@HP", len(instructions), ctypes.addressof(kept))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, option, program)
