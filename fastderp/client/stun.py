"""Queries a relay over STUN for the source address of our UDP packets (PROTOCOL §11).

Sans I/O: the caller owns the socket and repeats the request when no answer comes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from fastderp.errors import ProtocolError

TRANSACTION_ID_SIZE = 12

_HEADER_SIZE = 20
_COOKIE = bytes.fromhex("2112a442")
_BINDING_REQUEST = bytes.fromhex("0001")
_BINDING_SUCCESS = bytes.fromhex("0101")
# SOFTWARE comes first: relays that answer in the kernel expect it at this offset.
_SOFTWARE = bytes.fromhex("80220008") + b"tailnode"
_FINGERPRINT_HEAD = bytes.fromhex("80280004")
_FINGERPRINT_XOR = 0x5354554E

_MAPPED_ADDRESS = 0x0001
_XOR_MAPPED_ADDRESS = 0x0020
_XOR_MAPPED_ADDRESS_OLD = 0x8020  # its number in drafts, which some servers still use
_ADDRESS_SIZES = {1: 4, 2: 16}  # by family


def binding_request(transaction_id: bytes) -> bytes:
    """Build a request for the source address of the datagram.

    Args:
        transaction_id: 12 random bytes, which the answer repeats. Raises ValueError if not 12.
    """
    if len(transaction_id) != TRANSACTION_ID_SIZE:
        raise ValueError(
            f"a STUN transaction id has {TRANSACTION_ID_SIZE} bytes, not {len(transaction_id)}"
        )
    n_attributes = len(_SOFTWARE) + len(_FINGERPRINT_HEAD) + 4
    asked = _BINDING_REQUEST + n_attributes.to_bytes(2) + _COOKIE + transaction_id + _SOFTWARE
    fingerprint = zlib.crc32(asked) ^ _FINGERPRINT_XOR
    return asked + _FINGERPRINT_HEAD + fingerprint.to_bytes(4)


def parse_response(datagram: bytes) -> tuple[bytes, str, int]:
    """Return transaction id, address and port of an answer, by any STUN server.

    XOR-MAPPED-ADDRESS is preferred to MAPPED-ADDRESS; an IPv4 address inside an IPv6 one is
    extracted. Bytes after the length in the header are ignored. Raises ProtocolError for anything
    but a successful answer with an address.
    """
    if len(datagram) < _HEADER_SIZE or datagram[4:8] != _COOKIE:
        raise ProtocolError("not a STUN datagram")
    if datagram[:2] != _BINDING_SUCCESS:
        raise ProtocolError(
            f"STUN: a message of type 0x{datagram[:2].hex()} is not an answer with an address"
        )
    end = _HEADER_SIZE + int.from_bytes(datagram[2:4])
    if len(datagram) < end:
        raise ProtocolError(f"STUN: an answer of {end} bytes is cut to {len(datagram)}")
    transaction_id = datagram[8:_HEADER_SIZE]
    attributes = dict(
        reversed([*_attributes(datagram[_HEADER_SIZE:end])])
    )  # the first of several of a kind counts
    for number in (_XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_OLD):
        if number in attributes:
            return transaction_id, *_address(attributes[number], _COOKIE + transaction_id)
    if _MAPPED_ADDRESS in attributes:
        return transaction_id, *_address(
            attributes[_MAPPED_ADDRESS], bytes(len(_COOKIE) + TRANSACTION_ID_SIZE)
        )
    raise ProtocolError("STUN: an answer without an address")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and values of attributes.

    Values are padded to 4 bytes; the last one's padding may be missing.
    """
    at = 0
    while at < len(data):
        number, length = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4])
        value = data[at + 4 : at + 4 + length]
        if len(data) < at + 4 or len(value) < length:
            raise ProtocolError("STUN: an attribute is cut")
        yield number, value
        at += 4 + (length + 3 & ~3)


def _address(value: bytes, mask: bytes) -> tuple[str, int]:
    """Return the address and port of an attribute.

    All of it but the family is XORed with a 16-byte mask.
    """
    size = _ADDRESS_SIZES.get(value[1]) if len(value) >= 4 else None
    if size is None or len(value) < 4 + size:
        raise ProtocolError(f"STUN: {value.hex()} is not an address")
    port = int.from_bytes(value[2:4]) ^ int.from_bytes(mask[:2])
    shown = (int.from_bytes(value[4 : 4 + size]) ^ int.from_bytes(mask[:size])).to_bytes(size)
    if size == 4:
        return str(IPv4Address(shown)), port
    return str(IPv6Address(shown).ipv4_mapped or IPv6Address(shown)), port
