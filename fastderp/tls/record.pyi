"""TLS 1.3 records with the traffic keys a finished handshake left behind (RFC 8446 §5)."""

from collections.abc import Mapping
from typing import Final

SUITES: Final[Mapping[str, int]]
"""Suite names and their numbers."""

CAUSES: Final[tuple[str, ...]]
"""Every `TlsError.cause` that a RecordLayer raises."""

class RecordLayer:
    """One connection's keys: opens the peer's records and seals ours.

    Made by a handshake, or from two traffic secrets. Not for two threads at once. After any error
    but ValueError the connection is lost: send `alert` if you like, then close it.
    """

    def __init__(
        self,
        suite: str | int,
        read_secret: bytes,
        write_secret: bytes,
        *,
        client: bool = False,
        read_sequence: int = 0,
        write_sequence: int = 0,
        pending: bytes = b"",
    ) -> None:
        """Derive the keys of both directions.

        `suite` is a name or number of SUITES; the secrets are application traffic secrets as long as its hash.
        `client` permits session tickets, which only clients are sent. The sequences number the next records.
        `pending` is ciphertext that was read behind the handshake. Raises ValueError for an unknown suite
        or a secret of the wrong length.
        """

    @property
    def suite(self) -> str:
        """Name of the suite, empty once the keys were moved away."""

    @property
    def pending(self) -> bytes:
        """Ciphertext of a record that is not complete yet."""

    @property
    def eof(self) -> bool:
        """Whether the peer has closed its direction with close_notify."""

    def open(self, data: bytes = b"") -> bytes:
        """Open every record that `data` completes and return their application data joined.

        Raises TlsError (a cause of CAUSES) for anything else than data, KeyUpdate, close_notify and, for a client,
        tickets; then nothing of this call's data is returned. Returns b"" after close_notify.
        """

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """Seal data into records of up to 16 KiB; starts with a KeyUpdate when one is due, also for no data."""

    def close_notify(self) -> bytes:
        """Seal the alert that ends our direction in order."""

    def alert(self, description: int) -> bytes:
        """Seal a fatal alert (RFC 8446 §6.2)."""

    def ask_key_update(self) -> None:
        """Let the next seal change our key and ask the peer to change its own."""
