"""The header of the PROXY protocol, versions 1 and 2, that a proxy sends before a connection's bytes.

After haproxy's `proxy-protocol.txt`. Sans I/O; pure functions of the bytes read so far.
"""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from typing import NamedTuple

from fastderp.util.net import client_ip

# The specification's bound of a line, "PROXY UNKNOWN" with two IPv6 addresses, CRLF included.
V1_LIMIT_BYTES = 107
# Addresses take up to 216 bytes, and haproxy's own headers up to 536 in all. A TLV with a client's
# certificate takes up to 2 KiB. The format allows 65,535.
V2_BODY_LIMIT_BYTES = 4096

V1_SIGNATURE = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2_HEAD_BYTES = 16

_LOCAL, _PROXY = 0, 1
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESS_BYTES = {_TCP4: 4, _TCP6: 16}
# The proxy does not know the family, or the client came over a unix socket: no IP address.
_WITHOUT_ADDRESS = (0x00, 0x31)

_PORT = re.compile("0|[1-9][0-9]{0,4}")


class Status(Enum):
    """The result for bytes that are neither a whole header nor malformed."""

    INCOMPLETE = "the beginning of a header"
    ABSENT = "no header"


class Header(NamedTuple):
    """A whole header.

    Args:
        n_bytes: its length; the client's bytes follow it.
        source: (ip, port) of the client; None when the proxy made the connection itself (a health
            check) or does not know the address.
    """

    n_bytes: int
    source: tuple[str, int] | None


class Fault(NamedTuple):
    """A malformed header; `detail` names the error."""

    detail: str


def parse(data: bytes) -> Header | Fault | Status:
    """Parse the first bytes of a connection; never raises.

    The answer to a longer `data` is the same once it is not INCOMPLETE.
    """
    if data.startswith(V2_SIGNATURE):
        return _parse_v2(data)
    if data.startswith(V1_SIGNATURE):
        return _parse_v1(data)
    if V2_SIGNATURE.startswith(data) or V1_SIGNATURE.startswith(data):
        return Status.INCOMPLETE
    return Status.ABSENT


def _parse_v1(data: bytes) -> Header | Fault | Status:
    end = data.find(b"\r\n", 0, V1_LIMIT_BYTES)
    if end < 0:
        if len(data) >= V1_LIMIT_BYTES:
            return Fault(f"its line is longer than {V1_LIMIT_BYTES} bytes")
        return Status.INCOMPLETE
    family, *fields = data[len(V1_SIGNATURE) : end].decode("latin-1").split(" ")
    if family == "UNKNOWN":
        return Header(end + 2, None)
    kind = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}.get(family)
    if kind is None:
        return Fault("its family is neither TCP4, TCP6 nor UNKNOWN")
    if len(fields) != 4:
        return Fault("it wants two addresses and two ports, with one space before each")
    source, destination, *ports = fields
    try:
        kind(source), kind(destination)
    except ValueError:
        return Fault(f"its address is not one of {family}")
    if "%" in source + destination:
        return Fault("its address has a zone")
    if not all(_PORT.fullmatch(port) and int(port) < 65536 for port in ports):
        return Fault("its port is not a number from 0 to 65535")
    return Header(end + 2, (str(client_ip(source)), int(ports[0])))


def _parse_v2(data: bytes) -> Header | Fault | Status:
    if len(data) < V2_HEAD_BYTES:
        return Status.INCOMPLETE
    version, command, family = data[12] >> 4, data[12] & 15, data[13]
    n_body = int.from_bytes(data[14:V2_HEAD_BYTES])
    if version != 2 or command not in (_LOCAL, _PROXY):
        return Fault(f"its version {version} or command {command} is unknown")
    if n_body > V2_BODY_LIMIT_BYTES:
        return Fault(f"it announces {n_body} bytes; the limit is {V2_BODY_LIMIT_BYTES}")
    n_bytes = V2_HEAD_BYTES + n_body
    n_address = _ADDRESS_BYTES.get(family)
    if command == _PROXY:
        if n_address is None and family not in _WITHOUT_ADDRESS:
            return Fault(f"its family 0x{family:02x} is not one of TCP")
        if n_address is not None and n_body < 2 * n_address + 4:
            return Fault("it is too short for its addresses")
    if len(data) < n_bytes:
        return Status.INCOMPLETE
    if command == _LOCAL or n_address is None:
        return Header(n_bytes, None)
    source = ipaddress.ip_address(data[V2_HEAD_BYTES : V2_HEAD_BYTES + n_address])
    port_at = V2_HEAD_BYTES + 2 * n_address
    port = int.from_bytes(data[port_at : port_at + 2])
    return Header(n_bytes, (str(client_ip(str(source))), port))
