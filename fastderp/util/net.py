"""IP addresses: objects, text, and the 16 bytes of the data plane and of PeerPresent frames.

IPv4 takes the form ::ffff:a.b.c.d in 16 bytes (PROTOCOL §2). Pure functions; any thread.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TypeAlias

from fastderp.util.text import printable

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_ip(text: str) -> IpAddress | None:
    """Parse an IPv4 or IPv6 address; return None for any other text."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def client_ip(text: str) -> IpAddress | None:
    """Return the address of a peer without its zone, an IPv4-mapped one as IPv4, or None."""
    address = parse_ip(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    return parse_ip(text) is not None


def address_bytes(ip: str) -> bytes:
    """Return the 16 bytes of an address; zeros for any other text."""
    try:
        if ":" in ip:
            return socket.inet_pton(socket.AF_INET6, ip)
        return bytes(10) + b"\xff\xff" + socket.inet_pton(socket.AF_INET, ip)
    except OSError:
        return bytes(16)


def address_text(addr: bytes) -> str:
    """Return 16 bytes as the text of an address."""
    address = ipaddress.IPv6Address(addr)
    return str(address.ipv4_mapped or address)


def format_address(address: tuple[str, int]) -> str:
    """Write (ip, port) as URLs and logs do: IPv6 in brackets."""
    return f"{bracketed(address[0])}:{address[1]}"


def host_bytes(host: str) -> bytes:
    """Return a host as DNS and TLS write it: a name in ASCII (IDNA).

    Raises UnicodeError for a name with an empty or overlong label.
    """
    # Python's codec takes 0.3 MiB of memory, and ASCII needs none.
    if host.isascii() and all(0 < len(part) < 64 for part in host.removesuffix(".").split(".")):
        return host.encode("ascii")
    try:
        return host.encode("idna")
    except UnicodeError:
        raise UnicodeError(
            f"{printable(host)} is no host name: each of its parts has 1 to 63 letters, digits and -"
        ) from None


def bracketed(host: str) -> str:
    """Return a host as URLs and HTTP write it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
