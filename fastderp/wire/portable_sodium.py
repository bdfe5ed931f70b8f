"""`sodium` in plain Python, for platforms without compiled modules (PROTOCOL §1, §3). Any thread."""

from __future__ import annotations

from nacl import bindings
from nacl.exceptions import CryptoError, RuntimeError, ValueError


def shared_key(public: bytes, private: bytes) -> bytes | None:
    """Return the 32 bytes that two keys agree on; None for a `public` of low order."""
    try:
        return bindings.crypto_box_beforenm(public, private)
    except RuntimeError:
        return None


def seal(shared: bytes, nonce: bytes, message: bytes) -> bytes:
    """Return box(message)."""
    return bindings.crypto_box_afternm(message, nonce, shared)


def open_sealed(shared: bytes, nonce: bytes, sealed: bytes) -> bytes | None:
    """Return the message in a box; None when it was not sealed with this key and nonce."""
    try:
        return bindings.crypto_box_open_afternm(sealed, nonce, shared)
    except (CryptoError, ValueError):
        return None


def public_key(private: bytes) -> bytes:
    """Return the public half of `private`."""
    return bindings.crypto_scalarmult_base(private)


def are_equal(one: bytes, other: bytes) -> bool:
    """Compare two secrets in constant time."""
    return bindings.sodium_memcmp(one, other)
