"""Reads the relay's key from the metacert that relays append to their chain (PROTOCOL §10).

Pure functions; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastderp.wire.keys import NodePublic

# DER of a certificate up to its serial number: X.509 v3 with a serial number of 8 bits. The common
# name (2.5.4.3) has 71 characters, more than X.520 allows: X.509 libraries reject it or warn.
_SERIAL = re.compile(
    rb"\x30\x82..\x30(?:\x82..|\x81.)\xa0\x03\x02\x01\x02\x02(?:\x01(.)|\x02\x00(.))", re.DOTALL
)
_COMMON_NAME = re.compile(rb"\x06\x03\x55\x04\x03[\x0c\x13]\x47derpkey([0-9a-fA-F]{64})")


def announced_key(chain: Sequence[bytes]) -> NodePublic | None:
    """Return the relay's key that a metacert after the leaf announces; None without a metacert.

    `chain` holds the certificates in DER as the relay sent them in a TLS 1.3 handshake that has
    authenticated `chain[0]`: the leaf's signature covers the whole chain. The leaf is never read as
    a metacert.
    """
    for der in chain[1:]:
        serial = _SERIAL.match(der)
        name = _COMMON_NAME.search(der)
        if serial and name and any(serial[1] or serial[2]):
            key = NodePublic.from_hex(name[1].decode())
            if not key.is_zero:
                return key
    return None
