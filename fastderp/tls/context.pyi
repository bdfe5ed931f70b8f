"""The contexts that TLS connections share: a listener's certificate and rules, or a client's trust.

PROTOCOL §10.
"""

from collections.abc import Iterable, Sequence
from os import PathLike

class Context:
    """The base of every context. Contexts never change once made; any thread may use them."""

    @property
    def is_server(self) -> bool:
        """The side of the context: server or client."""

class ServerContext(Context):
    """A certificate and the rules of a listener.

    TLS 1.2 or 1.3, without tickets, compression, renegotiation and early data.
    """

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

        Args:
            chain: certificates in DER, the leaf first; presented exactly as given.
            key: the leaf's private key in PEM or DER.
            alpn: protocols; a client that offers ALPN must offer one of them.
            required_sni: the server name that a client must send; None for any or none.
            max_version: `TLSv1.2` or `TLSv1.3`.
            suites: TLS 1.3 suites in order of preference.

        Raises TlsError (cause `certificate`) for a chain or a key that cannot be used.
        """

class DeferredContext(Context):
    """The rules of a listener whose certificate is chosen per connection: see `Handshake.hello`."""

    def __init__(
        self, *, max_version: str = "TLSv1.3", suites: Iterable[str] | None = None
    ) -> None:
        """Prepare to answer handshakes; versions and suites are decided before the certificate."""

class ClientContext(Context):
    """The settings and trusted roots of a client."""

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
        """Prepare to connect.

        Args:
            verify: whether the chain must lead to a trusted root and the leaf be for the name.
            system_roots: trust the system's roots and `roots.BUILT_IN`.
            cafile: more roots, a file of PEM.
            roots: more roots, in DER.
            pin: SHA-256 of the only leaf to accept, regardless of its issuer. Only metacerts may
                follow it. It must be valid now and, unless the server is named by an address, be
                for its name (PROTOCOL §13).
            max_version: `TLSv1.2` or `TLSv1.3`.
            suites: TLS 1.3 suites to offer, in order of preference.

        Raises TlsError (cause `certificate`) for roots that cannot be read.
        """

    @property
    def verify(self) -> bool:
        """Whether chain and name are checked."""

    @property
    def pin(self) -> bytes | None:
        """SHA-256 of the only acceptable leaf."""
