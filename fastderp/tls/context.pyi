"""What TLS connections have in common: a listener's certificate and rules, or what a client trusts (PROTOCOL §10)."""

from collections.abc import Iterable, Sequence
from os import PathLike

class Context:
    """What many connections share; make a ServerContext or a ClientContext. Never changes, any thread."""

    @property
    def is_server(self) -> bool:
        """Which side it is for."""

class ServerContext(Context):
    """A certificate and the rules of a listener: TLS 1.2 or 1.3, no tickets, compression, renegotiation, early data."""

    def __init__(
        self,
        chain: Sequence[bytes],
        key: bytes,
        *,
        alpn: Iterable[str] = ("http/1.1",),
        required_sni: str | None = None,
        max_version: str = "TLSv1.3",
        suites: Iterable[str] | None = None,
    ) -> None:
        """Prepare to answer handshakes.

        `chain` holds certificates in DER, the leaf first; it is presented exactly as given. `key` is the leaf's
        private key in PEM or DER. A client that offers ALPN must offer one of `alpn`. With `required_sni` a client
        that names no server or another one is refused. `suites` are TLS 1.3 suites in order of preference.
        Raises TlsError (cause `certificate`) for a chain or a key that cannot be used.
        """

class DeferredContext(Context):
    """The rules of a listener whose certificate is chosen for each connection: see `Handshake.hello`."""

    def __init__(
        self, *, max_version: str = "TLSv1.3", suites: Iterable[str] | None = None
    ) -> None:
        """Prepare to answer handshakes that wait for a certificate; versions and suites are decided here."""

class ClientContext(Context):
    """What a client trusts."""

    def __init__(
        self,
        *,
        verify: bool = True,
        system_roots: bool = True,
        cafile: str | PathLike[str] | None = None,
        roots: Iterable[bytes] = (),
        pin: bytes | None = None,
        max_version: str = "TLSv1.3",
        suites: Iterable[str] | None = None,
    ) -> None:
        """Prepare to dial.

        With `verify` the server's chain must lead to the system's roots (which have `roots.BUILT_IN` beside them), those of
        `cafile` (PEM) or `roots` (DER), and its certificate must be for the name. `pin` is the SHA-256 of the one certificate
        accepted, whoever issued it: no other but metacerts may come with it, and it must be valid and, where the server has
        a name and not just an address, for that name. Raises TlsError (cause `certificate`) for roots that cannot be read.
        """

    @property
    def verify(self) -> bool:
        """Whether chain and name are checked."""

    @property
    def pin(self) -> bytes | None:
        """SHA-256 of the only acceptable certificate."""
