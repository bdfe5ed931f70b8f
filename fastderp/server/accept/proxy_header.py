"""Reads the PROXY header in front of a connection's bytes.

Sans I/O. Loop thread only.
"""

from __future__ import annotations

from fastderp.server.http.client_address import Origin, ProxyHeaderError, TrustedProxies
from fastderp.wire import proxy_protocol
from fastderp.wire.proxy_protocol import Fault, Header, Status


class ProxyHeaderReader:
    """Reads the first bytes of a connection on a port with `-proxy-protocol`.

    A trusted proxy must send a header: otherwise its client could forge one. All other peers must
    send none.

    Args:
        peer: the origin of the connection by its peer's address.
        trusted: the proxies.
    """

    __slots__ = ("_peer", "_received", "_trusted")

    def __init__(self, peer: Origin, trusted: TrustedProxies) -> None:
        self._peer = peer
        self._trusted = trusted
        self._received = b""

    @property
    def held_bytes(self) -> int:
        """The number of bytes of an incomplete header."""
        return len(self._received)

    def feed(self, data: bytes) -> tuple[Origin, bytes] | None:
        """Return the connection's origin and the bytes after the header; None until it is whole.

        Raises ProxyHeaderError.
        """
        self._received += data
        is_proxy = self._peer.through_proxy
        match proxy_protocol.parse(self._received):
            case Status.INCOMPLETE:
                return None
            case Status.ABSENT if not is_proxy:
                return self._peer, self._received
            case Status.ABSENT:
                raise ProxyHeaderError("absent", "a trusted proxy sent no PROXY header")
            case _ if not is_proxy:
                raise ProxyHeaderError(
                    "untrusted", "it sent a PROXY header, and -trusted-proxies does not list it"
                )
            case Fault(detail):
                raise ProxyHeaderError("malformed", f"its PROXY header is malformed: {detail}")
            case Header(n_bytes, source):
                return self._peer.behind(source, self._trusted), self._received[n_bytes:]
        raise AssertionError("unreachable")


def unexpected_header(data: bytes) -> str:
    """Return the error for a connection that begins with a PROXY header on a port without them.

    Returns "" for any other beginning.
    """
    if not data.startswith((proxy_protocol.V1_SIGNATURE, proxy_protocol.V2_SIGNATURE)):
        return ""
    return "the peer sent a PROXY header: -proxy-protocol accepts those of -trusted-proxies"
