"""IP addresses and networks as numbers."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple

__all__ = ["Network", "parse_address", "parse_network"]

_BITS = {4: 32, 6: 128}


class Network(NamedTuple):
    """A block of addresses.

    :param version: 4 or 6.
    :param length: how many leading bits its addresses share.
    :param bits: those bits.
    """

    version: int
    length: int
    bits: int

    def holds(self, text: str) -> bool:
        """Whether this text is an address of the block."""
        address = parse_address(text)
        if address is None or address[0] != self.version:
            return False
        return address[1] >> (_BITS[self.version] - self.length) == self.bits

    def __str__(self) -> str:
        kind = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        return f"{kind(self.bits << (_BITS[self.version] - self.length))}/{self.length}"


def parse_network(text: str) -> Network:
    """A block written as ``address/length``; bits of the address behind the length do not matter.

    :raises ValueError: when it is none.
    """
    address, slash, length = text.partition("/")
    if not slash or not length.isdecimal():
        raise ValueError("no '/' with a length behind it")
    network = ipaddress.ip_network(f"{address}/{int(length)}", strict=False)
    bits = int(network.network_address) >> (_BITS[network.version] - network.prefixlen)
    return Network(network.version, network.prefixlen, bits)


@lru_cache(maxsize=256)
def parse_address(text: str) -> tuple[int, int] | None:
    """Version and number of an address; ``None`` when the text is none."""
    version, family = (6, AF_INET6) if ":" in text else (4, AF_INET)
    try:
        return version, int.from_bytes(inet_pton(family, text), "big")
    except (OSError, ValueError):  # ValueError: characters that no address has
        return None
