"""TLS handshakes by OpenSSL through memory buffers, for either side (PROTOCOL §10)."""

from typing import Final, NamedTuple

from fastderp.tls.context import Context, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.record import RecordLayer

CAUSES: Final[tuple[str, ...]]
"""Every `TlsError.cause` of this module. `plain_http` gets the answer of PROTOCOL §9.5."""

INPUT_MAX_BYTES: Final[int]
"""Bytes that may wait for a handshake's next step."""

class ClientHello(NamedTuple):
    """The parts of a ClientHello that select the certificate.

    `server_name` is as sent, None without SNI. `alpn` is empty when it takes more than 256 bytes.
    """

    server_name: str | None
    alpn: tuple[str, ...]

class Handshake:
    """One connection's handshake: feed it, step it and send its output until it is `done`.

    `step` may run in a helper thread while the owner feeds it and takes its output; everything else
    is for the owner alone.
    """

    def __init__(
        self, context: Context, server_name: str | None = None, *, cert_name: str | None = None
    ) -> None:
        """Begin.

        A client sends `server_name`, unless it is an address, and checks the certificate against
        `cert_name`, by default the same name. Raises ValueError without a name to verify.
        """

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over bytes of the peer, of any length.

        Raises TlsError: `flood` beyond INPUT_MAX_BYTES, `closed` after a failure or `records`.
        """

    def step(self) -> bool:
        """Continue as far as the input allows, without the GIL; return whether it is done.

        Raises TlsError with a cause of CAUSES; `take_output` then has the alert for the peer.
        """

    @property
    def hello(self) -> ClientHello | None:
        """The client's request, until `choose` or `refuse`; for a DeferredContext only."""

    def choose(self, context: ServerContext) -> None:
        """Answer `hello` with this certificate; the next step continues."""

    def refuse(self, refusal: TlsError) -> None:
        """Answer `hello` with an alert; the next step raises this error.

        The alert is unrecognized_name for the cause `server_name`, internal_error for any other.
        """

    @property
    def unread_bytes(self) -> int:
        """The number of bytes that OpenSSL has not read yet."""

    def take_output(self) -> bytes:
        """Return the bytes to send to the peer, also after a failed step."""

    def records(self) -> RecordLayer:
        """Move a finished TLS 1.3 connection into a RecordLayer and free OpenSSL's object.

        Unread input is pending there. The caller must send untaken output first.
        """

    def read(self, n: int = 65536) -> bytes:
        """Return up to `n` decrypted bytes; b"" if none are ready or at `eof`. TLS 1.2."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt into the output. TLS 1.2."""

    def close_notify(self) -> None:
        """Put the alert that ends our direction into the output. TLS 1.2."""

    @property
    def done(self) -> bool:
        """Whether both sides have finished."""

    @property
    def eof(self) -> bool:
        """Whether `read` has reached the peer's close_notify."""

    @property
    def version(self) -> str | None:
        """`TLSv1.2` or `TLSv1.3` once done."""

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the suite once done."""

    @property
    def server_name(self) -> str | None:
        """The name the client has sent, if any, once done."""

    @property
    def alpn(self) -> str | None:
        """The agreed protocol, if any, once done."""

    @property
    def peer_chain(self) -> list[bytes]:
        """The server's certificates in DER, in the order it sent them, for a client once done."""
