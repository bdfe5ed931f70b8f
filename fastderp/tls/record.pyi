"""TLS 1.3 records, with the traffic keys of a finished handshake (RFC 8446 §5)."""

from collections.abc import Mapping
from typing import Final

from fastderp.tls.errors import TlsError

SUITES: Final[Mapping[str, int]]
"""Suite names and their numbers."""

CAUSES: Final[tuple[str, ...]]
"""Every `TlsError.cause` that a RecordLayer raises."""

class RecordLayer:
    """One connection's keys: opens the peer's records and seals ours.

    A handshake makes it, or its caller from two traffic secrets. Not for two threads at once. After
    any error but ValueError the connection is lost: send an `alert`, or close it at once.
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

        Args:
            suite: a name or number of SUITES.
            read_secret: the peer's application traffic secret, as long as the suite's hash.
            write_secret: our application traffic secret.
            client: accept session tickets, which servers send to clients.
            read_sequence: number of the next record to open.
            write_sequence: number of the next record to seal.
            pending: ciphertext that was read after the handshake.

        Raises ValueError for an unknown suite or a secret of the wrong length.
        """

    @property
    def suite(self) -> str:
        """Name of the suite; "" once the keys have been moved away."""

    @property
    def pending(self) -> bytes:
        """Ciphertext of a record that is not complete yet."""

    @property
    def held_bytes(self) -> int:
        """The number of pending bytes."""

    @property
    def eof(self) -> bool:
        """Whether the peer has closed its direction with close_notify."""

    @property
    def failure(self) -> TlsError | None:
        """The error of the record that broke the protocol; the next `open` raises it."""

    @property
    def has_more(self) -> bool:
        """False: `open_next` opens every record."""

    def open_next(self, data: bytes | bytearray | memoryview = b"") -> bytes:
        """Do the same as `open`: the layer seals after a failure of the input, too."""

    def open(self, data: bytes | bytearray | memoryview = b"") -> bytes:
        """Open every record that `data` completes and return their application data joined.

        Returns b"" after close_notify. Raises TlsError (a cause of CAUSES) for records other than
        data, KeyUpdate, close_notify and, for a client, tickets. Data before such a record is
        returned first, and `failure` is set. `pending` then begins with the record.
        """

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """Seal data into records of up to 16 KiB, after a KeyUpdate if it is due."""

    def close_notify(self) -> bytes:
        """Seal the alert that ends our direction: in order, or for `failure`.

        Returns b"" after an alert of the peer.
        """

    def alert(self, description: int) -> bytes:
        """Seal a fatal alert (RFC 8446 §6.2)."""

    def ask_key_update(self) -> None:
        """Let the next seal change our key and request a change of the peer's key."""
