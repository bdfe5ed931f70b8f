"""A second TLS 1.3 record layer in plain Python; it seals any content, valid or not.

It follows RFC 8446 and uses other libraries than the one under test, so that a shared error is
unlikely.
"""

import hmac
import struct
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

ALERT, HANDSHAKE, DATA = 21, 22, 23
CLOSE_NOTIFY = bytes([1, 0])
KEY_UPDATE = bytes([24, 0, 0, 1, 0])
KEY_UPDATE_REQUESTED = bytes([24, 0, 0, 1, 1])


class Aead(Protocol):
    """The common interface of the ciphers of `cryptography`."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


# suite -> hash, key bytes, cipher
SUITES: dict[str, tuple[str, int, Callable[[bytes], Aead]]] = {
    "TLS_AES_128_GCM_SHA256": ("sha256", 16, AESGCM),
    "TLS_AES_256_GCM_SHA384": ("sha384", 32, AESGCM),
    "TLS_CHACHA20_POLY1305_SHA256": ("sha256", 32, ChaCha20Poly1305),
}


def secret_size(suite: str) -> int:
    """Bytes of a traffic secret of the suite."""
    return hmac.new(b"", b"", SUITES[suite][0]).digest_size


class Direction:
    """One direction of a connection: its key and the number of its next record."""

    def __init__(self, suite: str, secret: bytes) -> None:
        self.hash, self.key_size, self.cipher = SUITES[suite]
        self.set_secret(secret)

    def set_secret(self, secret: bytes) -> None:
        self.secret = secret
        self.aead = self.cipher(self.expand("key", self.key_size))
        self.iv = int.from_bytes(self.expand("iv", 12))
        self.sequence = 0

    def expand(self, label: str, size: int) -> bytes:
        full = b"tls13 " + label.encode()
        info = struct.pack(">HB", size, len(full)) + full + b"\0"
        return hmac.digest(self.secret, info + b"\1", self.hash)[:size]

    def update(self) -> None:
        """Switch to the next generation of keys."""
        self.set_secret(self.expand("traffic upd", hmac.new(b"", b"", self.hash).digest_size))

    def nonce(self) -> bytes:
        nonce = (self.iv ^ self.sequence).to_bytes(12)
        self.sequence += 1
        return nonce

    def seal_inner(self, inner: bytes) -> bytes:
        """Seal any inner plaintext, also a malformed one."""
        header = bytes([DATA, 3, 3]) + (len(inner) + 16).to_bytes(2)
        return header + self.aead.encrypt(self.nonce(), inner, header)

    def seal(self, content: bytes, content_type: int = DATA, padding: int = 0) -> bytes:
        """Seal one record."""
        return self.seal_inner(content + bytes([content_type]) + bytes(padding))

    def open(self, wire: bytes) -> list[tuple[int, bytes]]:
        """Open complete records into (type, content) and follow KeyUpdates."""
        opened = []
        while wire:
            size = int.from_bytes(wire[3:5])
            inner = self.aead.decrypt(self.nonce(), wire[5 : 5 + size], wire[:5]).rstrip(b"\0")
            opened.append((inner[-1], inner[:-1]))
            if inner[-1] == HANDSHAKE and inner[0] == KEY_UPDATE[0]:
                self.update()
            wire = wire[5 + size :]
        return opened
