"""What `ray start --block` of Ray 2.60 takes, says and does, as far as the node guard relies on it.

It ends with status 1 within a second of an unexpected end of one of its processes (a crash; a raylet that
the GCS has declared dead), and takes the others with it. A process that ended by SIGTERM or with status 0
was stopped on purpose (`ray stop`, a drained node): then it says nothing, and stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from eagleray.errors import InputError

RAYLET = "raylet"
"""Name of its process."""
IS_UP = "Ray runtime started."
"""It prints this when the node is registered."""
NOTICES_AN_END_S = 5.0
"""Within which it has ended too, where the end was unexpected."""


def gcs_address(command: Sequence[str]) -> tuple[str, int]:
    """Host and port of the GCS that `ray start …` is to join.

    Raises:
        InputError: the command starts a head, or names no such address.
    """
    words = " ".join(command)
    if "--head" in command:
        raise InputError(f"a guard watches a worker node's way to the head, and this starts a head: {words}")
    parts = [part for argument in command for part in argument.split("=", 1)]
    address = parts[parts.index("--address") + 1 :][:1] if "--address" in parts else []
    host, colon, port = "".join(address).rpartition(":")
    if not (host and colon and port.isdigit()):
        raise InputError(
            f"give the GCS as host:port, as in `ray start --address=HEAD:6379 …`; found: {words}"
        )
    return host.strip("[]"), int(port)


def blocking(command: Sequence[str]) -> list[str]:
    """The command, staying as long as its node."""
    return [*command] if "--block" in command else [*command, "--block"]
