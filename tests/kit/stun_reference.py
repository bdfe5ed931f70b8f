"""STUN in plain Python after PROTOCOL §11, the reference for the compiled responder."""

from __future__ import annotations

import zlib

_HEADER_BYTES = 20
_COOKIE = bytes.fromhex("2112a442")
_BINDING_REQUEST = b"\x00\x01"
_SOFTWARE = 0x8022
_SOFTWARE_VALUE = b"tailnode"
_FINGERPRINT = 0x8028
_FINGERPRINT_XOR = 0x5354554E
# an answer up to its transaction id, and its attribute up to the port
_IPV4_HEAD, _IPV4_ATTRIBUTE = bytes.fromhex("0101000c2112a442"), bytes.fromhex("002000080001")
_IPV6_HEAD, _IPV6_ATTRIBUTE = bytes.fromhex("010100182112a442"), bytes.fromhex("002000140002")


def transaction_id(datagram: bytes | memoryview) -> bytes | None:
    """Return the 12-byte transaction id of a tailscale binding request, None for anything else.

    SOFTWARE must be `tailnode`, FINGERPRINT must be last and correct, and the attributes must
    fill the datagram exactly. The length field of the header is ignored.
    """
    n_bytes = len(datagram)
    if n_bytes < _HEADER_BYTES or datagram[:2] != _BINDING_REQUEST or datagram[4:8] != _COOKIE:
        return None
    from_tailscale = False
    last, at = -1, _HEADER_BYTES
    while at < n_bytes:
        if at + 4 > n_bytes:
            return None
        last = int.from_bytes(datagram[at : at + 2])
        length = int.from_bytes(datagram[at + 2 : at + 4])
        value = at + 4
        at = value + (length + 3 & ~3)
        if at > n_bytes:
            return None
        if last == _SOFTWARE and datagram[value : value + length] == _SOFTWARE_VALUE:
            from_tailscale = True
    if not from_tailscale or last != _FINGERPRINT or length != 4:
        return None
    fingerprint = zlib.crc32(datagram[: n_bytes - 8]) ^ _FINGERPRINT_XOR
    if int.from_bytes(datagram[n_bytes - 4 :]) != fingerprint:
        return None
    return bytes(datagram[8:20])


def binding_response(txid: bytes, address: bytes, port: int) -> bytes:
    """Build the answer to a binding request from its txid and the sender's address and port.

    An answer has 32 bytes for IPv4 and 44 for IPv6, 1.1 times a client's 40-byte request.
    """
    head, attribute = (
        (_IPV4_HEAD, _IPV4_ATTRIBUTE) if len(address) == 4 else (_IPV6_HEAD, _IPV6_ATTRIBUTE)
    )
    mask = _COOKIE + txid
    hidden = int.from_bytes(address) ^ int.from_bytes(mask[: len(address)])
    return head + txid + attribute + (port ^ 0x2112).to_bytes(2) + hidden.to_bytes(len(address))


def answer_to(datagram: bytes, address: bytes, port: int) -> bytes | None:
    """Return the answer to a datagram from `address` (4 or 16 bytes) and `port`, or None."""
    txid = transaction_id(datagram)
    return None if txid is None else binding_response(txid, address, port)
