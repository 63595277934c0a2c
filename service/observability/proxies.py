"""The address of a client behind reverse proxies, from `X-Forwarded-For` or `Forwarded`.

Any client can send these headers, so they count only as far as trusted proxies wrote them: each
proxy appends the address that it received the request from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

_Address = IPv4Address | IPv6Address
_MAX_HOPS = 32  # a longer list of addresses is not read
_CACHED_PEERS = 256
# One `for` parameter of each comma-separated element of a Forwarded header (RFC 7239).
_FORWARDED_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("[^"]*"|[^;,\s]*)', re.IGNORECASE)


class TrustedProxies:
    """Addresses and networks whose forwarding headers are used."""

    def __init__(self, networks: str | None = None) -> None:
        """Parses the setting `trusted_proxies`.

        Args:
            networks: comma-separated addresses and networks, such as "10.0.0.0/8,::1"; None or
                empty: no proxy is trusted.

        Raises:
            ValueError: for anything else; the message names the part.
        """
        parts = [part.strip() for part in (networks or "").split(",")]
        self._networks = tuple(_network(part) for part in parts if part)
        self._trusts = lru_cache(_CACHED_PEERS)(self._is_trusted)

    def trusts(self, peer: str) -> bool:
        """Whether the address at the other end of a connection is a trusted proxy."""
        return bool(self._networks) and self._trusts(peer)

    def client(self, peer: str, values: Callable[[str], Sequence[str]]) -> str:
        """Returns the address of the client.

        Args:
            peer: address at the other end of the connection.
            values: returns all values of a header by its lower-case name. `X-Forwarded-For` takes
                precedence over `Forwarded`.

        Returns:
            The last forwarded address that is not a trusted proxy; `peer` if that is not one
            itself. An entry that is no address ends the search.
        """
        found = peer
        if not self.trusts(peer):
            return found
        hops = _forwarded(values)
        for hop in reversed(hops[-_MAX_HOPS:]):
            address = _address(hop)
            if address is None:
                break
            found = str(address)
            if not self.trusts(found):
                break
        return found

    def _is_trusted(self, peer: str) -> bool:
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)


def _network(part: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(part, strict=False)
    except ValueError:
        raise ValueError(f"{part!r} is not an IP address or network such as 10.0.0.0/8") from None


def _forwarded(values: Callable[[str], Sequence[str]]) -> list[str]:
    """The forwarded addresses, as sent; the last one was added by the nearest proxy."""
    if lines := values("x-forwarded-for"):
        return [hop for line in lines for hop in line.split(",")]
    hops = []
    for line in values("forwarded"):
        for element in line.split(","):
            found = _FORWARDED_FOR.search(element)
            hops.append(found[1].strip('"') if found else "")
    return hops


def _address(text: str) -> _Address | None:
    """Parses an address that may have a port: 10.0.0.1:80, [::1]:80. None: not an address."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
