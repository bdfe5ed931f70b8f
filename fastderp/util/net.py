"""Addresses in their forms: 16 bytes for the data plane and PeerPresent frames (IPv4 as ::ffff:a.b.c.d, PROTOCOL §2), text for people."""

from __future__ import annotations

import ipaddress
import socket


def address_bytes(ip: str) -> bytes:
    """Return the 16 bytes of an address; zeros when it is none."""
    try:
        if ":" in ip:
            return socket.inet_pton(socket.AF_INET6, ip)
        return bytes(10) + b"\xff\xff" + socket.inet_pton(socket.AF_INET, ip)
    except OSError:
        return bytes(16)


def address_text(addr: bytes) -> str:
    """Return the address that 16 bytes stand for."""
    address = ipaddress.IPv6Address(addr)
    return str(address.ipv4_mapped or address)


def format_address(address: tuple[str, int]) -> str:
    """Write (ip, port) as people and logs do: IPv6 in brackets."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
