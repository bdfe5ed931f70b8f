"""Dials another relay: TCP, TLS, upgrade, its key. PROTOCOL §7.3, §13.

The data plane writes the login, so this module accounts for all bytes before it. Loop thread
only.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from fastderp.dataplane.plane import MAX_UNREAD_BYTES
from fastderp.errors import ConnectionClosed, DialError, ProtocolError
from fastderp.net.stream import Stream as ClientStream
from fastderp.net.target import UrlTarget
from fastderp.net.tls import TlsStream
from fastderp.net.upgrade import upgrade
from fastderp.server.net.listen import UNSENT_BYTES, tune
from fastderp.tls.channel import Channel
from fastderp.tls.context import ClientContext
from fastderp.tls.errors import TlsError
from fastderp.tls.record import RecordLayer
from fastderp.wire import login
from fastderp.wire.keys import NodePublic
from fastderp.wire.protocol import MAX_SERVER_KEY_SIZE

Attach = Callable[[int], None]
"""Gets the handle of the session that reads a descriptor."""
JoinSocket = Callable[[socket.socket, Channel], tuple[int, Attach]]
"""Puts a channel between a socket and a descriptor that it returns for the data plane."""

CONNECT_TIMEOUT_S = 10.0
# An unreachable relay is detected after 25 s of silence, or after 15 s of unacknowledged data.
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3
USER_TIMEOUT_MS = 15_000


@dataclass(slots=True)
class DialedRelay:
    """A connection to a relay that has sent its key and waits for a login.

    channel: the TLS channel; None for plain TCP. wire holds bytes that were read and not opened,
    opened those that were opened and not used.
    """

    sock: socket.socket
    server_key: NodePublic
    channel: Channel | None
    wire: bytes
    opened: bytes

    @property
    def remote(self) -> tuple[str, int]:
        """The relay's address; ("", 0) when the connection is closed."""
        try:
            host, port, *_ = self.sock.getpeername()
            return host, port
        except OSError:
            return "", 0

    def close(self) -> None:
        """Close the connection unless it was handed over."""
        self.sock.close()

    def records(self) -> RecordLayer | None:
        """The keys of a TLS 1.3 connection."""
        return self.channel if isinstance(self.channel, RecordLayer) else None

    def hand_over(self, join: JoinSocket) -> tuple[int, Attach]:
        """Return the descriptor for the data plane; TLS 1.2 goes through a bridge."""
        if self.channel is None or self.records() is not None:
            return self.sock.detach(), lambda handle: None
        return join(socket.socket(fileno=self.sock.detach()), self.channel)


async def dial(target: UrlTarget, context: ClientContext) -> DialedRelay:
    """Connect to a relay and read its key, within 10 s. Raises DialError that names the cause."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            opened = await target.open(prefer_ipv6=False, secure_proxy=_no_proxy)
            try:
                return await _introduce(
                    opened.stream,
                    opened.node.host_name,
                    opened.host,
                    opened.path,
                    opened.https,
                    context,
                )
            except BaseException:
                opened.stream.abort()
                raise
    except TimeoutError:
        raise DialError(f"no connection in {CONNECT_TIMEOUT_S:g} s") from None
    except (ConnectionClosed, ProtocolError, TlsError, OSError) as error:
        raise DialError(str(error)) from error


async def _introduce(
    outside: ClientStream, name: str, host: str, path: str, https: bool, context: ClientContext
) -> DialedRelay:
    inside = await TlsStream.connect(outside, context, name) if https else None
    stream = ClientStream.of(inside) if inside is not None else outside
    # No fast start: the response proves that all written bytes have been sent.
    await upgrade(stream, host=host, path=path)
    server_key = login.parse_server_key(
        *await stream.read_frame(MAX_SERVER_KEY_SIZE, CONNECT_TIMEOUT_S)
    )
    opened = stream.take_unread() + (inside.take_unread() if inside is not None else b"")
    sock, unread = outside.detach()
    try:
        if len(opened) + len(unread) > MAX_UNREAD_BYTES // 2:
            raise DialError("the relay sends much more than its key before the login")
        _prepare(sock)
        return _dialled(sock, server_key, inside, unread, opened)
    except BaseException:
        sock.close()
        raise


def _dialled(
    sock: socket.socket, key: NodePublic, inside: TlsStream | None, unread: bytes, opened: bytes
) -> DialedRelay:
    if inside is None:
        return DialedRelay(sock, key, None, b"", opened + unread)
    channel = inside.channel
    if isinstance(channel, RecordLayer):
        return DialedRelay(sock, key, channel, channel.pending + unread, opened)
    return DialedRelay(sock, key, channel, b"", opened + channel.open(unread))


def _prepare(sock: socket.socket) -> None:
    """Set the options of a link's socket, which are else those of a listener's."""
    sock.setblocking(False)
    tune(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tune(sock, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    tune(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    tune(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    tune(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    tune(sock, socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    tune(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


async def _no_proxy(stream: ClientStream, host: str) -> ClientStream:
    raise DialError(f"{host}: relays are never dialled through a proxy")
