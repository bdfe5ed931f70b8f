def shared_key(public: bytes, private: bytes) -> bytes | None:
    """Return the 32 bytes that two keys of 32 bytes agree on; None for a `public` of low order.

    It takes about 50 µs, without the GIL. Raises ValueError for another size, as all do here.
    """

def seal(shared: bytes, nonce: bytes, message: bytes) -> bytes:
    """Return box(message), 16 bytes longer than `message`; `nonce` has 24 bytes."""

def open_sealed(shared: bytes, nonce: bytes, sealed: bytes) -> bytes | None:
    """Return the message in a box; None when it was not sealed with this key and nonce."""

def public_key(private: bytes) -> bytes:
    """Return the 32 bytes of the public half of `private`."""

def are_equal(one: bytes, other: bytes) -> bool:
    """Compare two secrets of 32 bytes in constant time."""
