"""Finds this machine's gateway in Linux's routing table. Any thread."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

ROUTES = Path("/proc/net/route")

# Flags of a route, from linux/route.h.
_RTF_UP, _RTF_GATEWAY = 1, 2


def private_gateway(routes: Path = ROUTES) -> ipaddress.IPv4Address | None:
    """Return the gateway of the default route; None without one, or if its address is public."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        # interface, destination, gateway, flags, …; an address is the hexadecimal number that its
        # four bytes in network order are to this machine
        fields = line.split()
        try:
            destination, gateway, flags = (int(field, 16) for field in fields[1:4])
        except ValueError:
            continue
        wanted = _RTF_UP | _RTF_GATEWAY
        if destination == 0 and flags & wanted == wanted:
            address = ipaddress.IPv4Address(gateway.to_bytes(4, sys.byteorder))
            return address if address.is_private else None
    return None
