"""Makes the metacert, which announces the relay's key to TLS 1.3 clients (PROTOCOL §10).

Any thread.
"""

from __future__ import annotations

import time

from fastderp.tls.x509 import PrivateKey
from fastderp.wire.protocol import PROTOCOL_VERSION

PREFIX = "derpkey"
VALIDITY_S = 30 * 24 * 3600


def meta_cert(public_key_hex: str) -> bytes:
    """Make the metacert of a relay, in DER (PROTOCOL §10).

    `public_key_hex` is the relay's public key, 64 lower-case hex digits. The signing key is
    discarded: clients read the name and verify nothing.
    """
    now = int(time.time())
    return PrivateKey.generate_ed25519().self_signed(
        PREFIX + public_key_hex,
        serial=PROTOCOL_VERSION,
        not_before=now - VALIDITY_S,
        not_after=now + VALIDITY_S,
        extensions={"basicConstraints": "critical,CA:FALSE"},
    )
