"""How the two ends of a link prove to each other that they have the cluster's key, before any other frame.

The replica sends CHALLENGE (protocol, nonce, instance), the gateway PROOF (nonce, what it wants, HMAC), the
replica WELCOME (what was agreed, HMAC). Both HMAC-SHA256 go over all that both said, and over the role, so
that neither can be sent back as the other. On TCP every later frame is sealed with a key of its direction,
made from both nonces. On a unix socket the folder's mode keeps others out, and the PROOF carries the ring's
descriptor.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

from eagleray.errors import ServiceError
from eagleray.serving.link.frames import (
    HEADER,
    HEADER_BYTES,
    FrameError,
    Kind,
    Seal,
    header,
)
from eagleray.serving.link.ring import Ring, RingOptions, SharedRing

PROTOCOL = 1
KEY_BYTES = 32
_MAC_BYTES = 32
_CHALLENGE = struct.Struct("<B32s")
_MAX_INSTANCE_BYTES = 64
_WISHES = struct.Struct("<32sIII")
"""Nonce, largest frame, slots of the ring (0: none), bytes of each."""
_AGREED = struct.Struct("<I")
"""Largest frame."""
_MAX_FD_BYTES = socket.CMSG_LEN(struct.calcsize("i"))
"""Room for one descriptor: the kernel closes what does not fit."""


class LinkRefused(ServiceError):
    """No link to this replica: it is not there, is another one, or has not the cluster's key."""


class Gone(FrameError):
    """The other end closed the connection before the handshake was over."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both ends know when the handshake is over."""

    max_frame_bytes: int
    seal_out: Seal | None = None
    seal_in: Seal | None = None
    ring: SharedRing | None = None
    """The replica's side, where one was handed over."""


class Reader(Protocol):
    """Receives bytes of a handshake."""

    async def __call__(self, num_bytes: int) -> bytes:
        """At least one byte, at most `num_bytes`; none at the end."""
        ...


def check_key(key: bytes) -> bytes:
    """The key. Raises: ValueError: it is not one."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"the cluster's key has {len(key)} bytes; give {KEY_BYTES}")
    return key


async def serve(sock: socket.socket, key: bytes, *, instance: str, max_frame_bytes: int) -> Agreed:
    """The replica's side, on a socket that does not block.

    Raises:
        FrameError: the other end has not the key, or speaks otherwise.
    """
    loop = asyncio.get_running_loop()
    nonce = secrets.token_bytes(32)
    challenge = _CHALLENGE.pack(PROTOCOL, nonce) + instance.encode()
    await loop.sock_sendall(sock, header(Kind.CHALLENGE, 0, len(challenge)) + challenge)
    fds: list[int] = []

    async def receive(num_bytes: int) -> bytes:
        return await _receive_with_fd(sock, num_bytes, fds)

    try:
        body = await _frame(
            receive if _is_unix(sock) else _plain(sock), Kind.PROOF, _WISHES.size + _MAC_BYTES
        )
        wishes, proof = body[: _WISHES.size], body[_WISHES.size :]
        said = challenge + wishes
        if not hmac.compare_digest(proof, _mac(key, b"gateway", said)):
            raise FrameError("the gateway has not the cluster's key")
        _, wanted_bytes, slots, slot_bytes = _WISHES.unpack(wishes)
        agreed_bytes = min(max_frame_bytes, wanted_bytes)
        ring = _shared_ring(fds, slots, slot_bytes)
    finally:
        for fd in fds:
            os.close(fd)
    agreement = _AGREED.pack(agreed_bytes)
    welcome = agreement + _mac(key, b"replica", said + agreement)
    await loop.sock_sendall(sock, header(Kind.WELCOME, 0, len(welcome)) + welcome)
    if _is_unix(sock):
        return Agreed(agreed_bytes, ring=ring)
    return Agreed(agreed_bytes, *_seals(key, said, mine=b"from replica", other=b"from gateway"))


async def greet(
    sock: socket.socket, key: bytes, *, instance: str, max_frame_bytes: int, ring: Ring | None
) -> tuple[Agreed, str]:
    """The gateway's side, on a socket that does not block: what was agreed, and which replica it is.

    Args:
        sock: Connected.
        key: The cluster's.
        instance: The replica that it must be; "" for any.
        max_frame_bytes: The most that this side takes.
        ring: Handed over, where the socket is a unix socket.

    Raises:
        LinkRefused: it is another replica, speaks another protocol, or has not the key.
    """
    try:
        return await _greet(sock, key, instance, max_frame_bytes, ring)
    except FrameError as error:
        raise LinkRefused(f"no link to replica {instance[:12] or 'of any name'}: {error}") from error


async def _greet(
    sock: socket.socket, key: bytes, instance: str, max_frame_bytes: int, ring: Ring | None
) -> tuple[Agreed, str]:
    loop, receive = asyncio.get_running_loop(), _plain(sock)
    challenge = await _frame(receive, Kind.CHALLENGE, _CHALLENGE.size, _CHALLENGE.size + _MAX_INSTANCE_BYTES)
    protocol, _ = _CHALLENGE.unpack_from(challenge)
    found = challenge[_CHALLENGE.size :].decode(errors="replace")
    if protocol != PROTOCOL:
        raise FrameError(f"it speaks protocol {protocol}, and this gateway {PROTOCOL}")
    if instance and found != instance:
        raise FrameError(f"another one is there now ({found[:12]!r})")
    options = ring.options if ring is not None else None
    slots, slot_bytes = (options.slots, options.slot_bytes) if options else (0, 0)
    wishes = _WISHES.pack(secrets.token_bytes(32), max_frame_bytes, slots, slot_bytes)
    said = challenge + wishes
    body = wishes + _mac(key, b"gateway", said)
    message = header(Kind.PROOF, 0, len(body)) + body
    if ring is not None:
        # The socket is new and the message small: it is sent at once, whole.
        socket.send_fds(sock, [message], [ring.fd])
    else:
        await loop.sock_sendall(sock, message)
    welcome = await _frame(receive, Kind.WELCOME, _AGREED.size + _MAC_BYTES)
    agreement, proof = welcome[: _AGREED.size], welcome[_AGREED.size :]
    if not hmac.compare_digest(proof, _mac(key, b"replica", said + agreement)):
        raise FrameError("it has not the cluster's key")
    agreed_bytes = min(max_frame_bytes, *_AGREED.unpack(agreement))
    if _is_unix(sock):
        return Agreed(agreed_bytes), found
    seals = _seals(key, said, mine=b"from gateway", other=b"from replica")
    return Agreed(agreed_bytes, *seals), found


async def _frame(receive: Reader, kind: Kind, least: int, most: int | None = None) -> bytes:
    """The body of the next frame, which must be this one; not a byte more is taken from the socket."""
    size, _, found, *_ = HEADER.unpack(await _exactly(receive, HEADER_BYTES))
    if found != kind:
        raise FrameError(f"a frame of kind {found} came before the handshake was over")
    if not least <= size <= (most or least):
        raise FrameError(f"the handshake's {kind.name} has {size} bytes; expected {least}")
    return await _exactly(receive, size)


async def _exactly(receive: Reader, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        more = await receive(num_bytes - len(data))
        if not more:
            raise Gone("it closed the connection before the handshake was over: another key, perhaps")
        data += more
    return data


def _plain(sock: socket.socket) -> Reader:
    async def receive(num_bytes: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(sock, num_bytes)

    return receive


async def _receive_with_fd(sock: socket.socket, num_bytes: int, fds: list[int]) -> bytes:
    """As `sock_recv`; a descriptor that came along is appended to `fds`."""
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(num_bytes, _MAX_FD_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(sock)
            continue
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(content) // 4}i", content)
        if len(fds) > 1:
            raise FrameError("more than one descriptor came")
        return data


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    is_readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: is_readable.done() or is_readable.set_result(None))
    try:
        await is_readable
    finally:
        loop.remove_reader(sock)


def _shared_ring(fds: list[int], slots: int, slot_bytes: int) -> SharedRing | None:
    """The ring that was handed over; takes its descriptor out of `fds`."""
    if slots == 0:
        return None
    if len(fds) != 1:
        raise FrameError(f"a ring was announced, and {len(fds)} descriptors came")
    try:
        options = RingOptions(slots, slot_bytes)
    except ValueError as error:
        raise FrameError(f"the ring that was announced is none: {error}") from error
    return SharedRing(fds.pop(), options)


def _mac(key: bytes, role: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"eagleray link " + role + b"\0" + said, "sha256")


def _seals(key: bytes, said: bytes, *, mine: bytes, other: bytes) -> tuple[Seal, Seal]:
    return Seal(_mac(key, mine, said)), Seal(_mac(key, other, said))


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX
