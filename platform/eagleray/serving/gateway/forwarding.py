"""Whose request it is: the socket's other end, or whom a proxy that is trusted names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|(\d{1,3}(?:\.\d{1,3}){3}):\d{1,5}")


class Proxies:
    """The proxies whose X-Forwarded-For is believed.

    Args:
        listed: Addresses and networks, `10.0.0.7` or `10.1.0.0/16`.
    """

    def __init__(self, listed: Sequence[str] = ()) -> None:
        self._networks = tuple(ip_network(one) for one in listed)
        self._is_listed = lru_cache(maxsize=1024)(self._is_in_a_network)

    @property
    def are_any(self) -> bool:
        """Whether any is listed."""
        return bool(self._networks)

    def client_of(self, peer: str, forwarded: Sequence[str]) -> str:
        """The client's address.

        Each proxy adds the address that it heard from, at the end: what stands left of the last address that
        is no proxy of ours, the client may have written itself.

        Args:
            peer: The socket's other end.
            forwarded: The values of X-Forwarded-For, in their order.
        """
        if not self._networks or not forwarded or not self._is_listed(peer):
            return peer
        found = peer
        for hop in reversed(",".join(forwarded).split(",")):
            address = _address(hop.strip())
            if address is None:
                return found
            found = address
            if not self._is_listed(found):
                return found
        return found

    def _is_in_a_network(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def _address(hop: str) -> str | None:
    """`hop` without its port; None where it is no address."""
    if (found := _WITH_PORT.fullmatch(hop)) is not None:
        hop = found[1] or found[2]
    try:
        return str(ip_address(hop))
    except ValueError:
        return None
