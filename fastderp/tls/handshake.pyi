"""TLS handshakes by OpenSSL through memory buffers, for either side of a connection (PROTOCOL §10)."""

from typing import Final, NamedTuple

from fastderp.tls.context import Context, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.record import RecordLayer

CAUSES: Final[tuple[str, ...]]
"""Every `TlsError.cause` that this module raises. `plain_http` asks for the answer of PROTOCOL §9.5."""

INPUT_MAX_BYTES: Final[int]
"""Bytes that may wait for a handshake's next step."""

class ClientHello(NamedTuple):
    """What a client asks for before any certificate is chosen.

    `server_name` is as sent, None without one. `alpn` is empty when it takes more than 256 bytes.
    """

    server_name: str | None
    alpn: tuple[str, ...]

class Handshake:
    """One connection's handshake: feed it, step it, send what it says, until `done`.

    `step` may run in a helper thread while the owner feeds and takes output; all else is for the owner alone.
    """

    def __init__(
        self, context: Context, server_name: str | None = None, *, cert_name: str | None = None
    ) -> None:
        """Begin; a client says `server_name` (not when it is an address) and checks the certificate against
        `cert_name`, or the server name without one. Raises ValueError when there is no name to verify.
        """

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over bytes of the peer, of any length.

        Raises TlsError: `flood` beyond INPUT_MAX_BYTES, `closed` after a failure or `records`.
        """

    def step(self) -> bool:
        """Go as far as the input reaches, without the GIL; return whether the handshake is done.

        Raises TlsError with a cause of CAUSES; `take_output` then still has the alert for the peer.
        """

    @property
    def hello(self) -> ClientHello | None:
        """What the client asks for, once it is there and until `choose` or `refuse`, for a DeferredContext; else None."""

    def choose(self, context: ServerContext) -> None:
        """Answer `hello` with this certificate; the next step goes on."""

    def refuse(self, refusal: TlsError) -> None:
        """Answer `hello` with an alert; the next step raises this error. Any cause but `server_name` blames us."""

    def take_output(self) -> bytes:
        """Return what is to be sent to the peer now, also after a failed step."""

    def records(self) -> RecordLayer:
        """Move a finished TLS 1.3 connection into a RecordLayer and free OpenSSL's object.

        Input that was not consumed is already pending there. Output that was not taken is still to be sent first.
        """

    def read(self, n: int = 65536) -> bytes:
        """Return up to `n` decrypted bytes, b"" when there are none now (or ever: see `eof`). TLS 1.2."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt into the output. TLS 1.2."""

    def close_notify(self) -> None:
        """Put the alert that ends our direction into the output. TLS 1.2."""

    @property
    def done(self) -> bool:
        """Whether both sides have finished."""

    @property
    def eof(self) -> bool:
        """Whether `read` met the peer's close_notify."""

    @property
    def version(self) -> str | None:
        """`TLSv1.2` or `TLSv1.3` once done."""

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the suite once done."""

    @property
    def server_name(self) -> str | None:
        """The name the client asked for, if any, once done."""

    @property
    def alpn(self) -> str | None:
        """The agreed protocol, if any, once done."""

    @property
    def peer_chain(self) -> list[bytes]:
        """The server's certificates in DER as it sent them, for a client once done."""
