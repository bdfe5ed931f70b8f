"""The keys of NaCl boxes (PROTOCOL §1) by the X25519 of the crypto library."""

class Agreement:
    """Agrees on keys between one private key and many public ones. One thread at a time.

    It holds a copy of the private key in the library's memory.
    """

    def __init__(self, private: bytes) -> None:
        """Take a private key of 32 bytes. Raises ValueError for another size, or MemoryError."""

    def shared_key(self, public: bytes) -> bytes | None:
        """Return the 32 bytes that `sodium.shared_key` returns; None for a key of low order.

        Raises ValueError for another size than 32 bytes, or MemoryError.
        """
