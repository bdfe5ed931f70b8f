"""Log clients in to a relay and hand their bare sockets to the load engine.

Runs on asyncio before the load starts; nothing here is on the measured path. Unlike
`fastderp.client` it stops right behind ServerInfo and gives the descriptor away.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastderp.dataplane.record import RecordLayer
from fastderp.errors import DialError, ProtocolError
from fastderp.keys import NodePrivate
from fastderp.login import ClientInfo, client_info_frame, open_server_info, parse_server_key
from fastderp.protocol import HEADER, HEADER_SIZE, MAX_CLIENT_FRAME_SIZE, FrameType
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientContext, Handshake

LOGIN_LIMIT_S = 30.0
LOGINS_AT_ONCE = 64
HEAD_LIMIT_BYTES = 16384
# More than this unsent in a sender's kernel would be queueing of the load, not of the relay.
NOT_SENT_LIMIT_BYTES = 32768
TCP_NOTSENT_LOWAT = 25
IP_BIND_ADDRESS_NO_PORT = 24
# Linux hands out about 28,000 ports per pair of addresses unless told otherwise; some may be taken.
CLIENTS_PER_SOURCE = 20_000


@dataclass(frozen=True, slots=True)
class Target:
    """A relay by URL. `tls` is what to trust over https, None over http.

    Without `check_box` the relay's ServerInfo may be anything (the bench's floor).
    """

    host: str
    port: int
    path: str = "/derp"
    tls: ClientContext | None = None
    check_box: bool = True

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        insecure: bool = False,
        cafile: str | None = None,
        suite: str | None = None,
        check_box: bool = True,
    ) -> Target:
        """Read `http://host[:port][/path]` or `https://…`; the path is /derp unless given.

        `insecure` accepts any certificate, `cafile` names more roots (PEM), `suite` is the only
        TLS 1.3 suite to offer. Raises ValueError saying what is wrong with the URL, TlsError for
        roots that cannot be read.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{url}: a relay's URL begins with http:// or https://")
        if not parts.hostname:
            raise ValueError(f"{url}: no host in the URL")
        path = parts.path if parts.path not in ("", "/") else "/derp"
        if parts.scheme == "http":
            return cls(parts.hostname, parts.port or 80, path, None, check_box)
        suites = None if suite is None else [suite]
        trust = ClientContext(verify=not insecure, cafile=cafile, suites=suites)
        return cls(parts.hostname, parts.port or 443, path, trust, check_box)

    @property
    def authority(self) -> str:
        """host:port as the Host header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in full."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


@dataclass(slots=True)
class Joined:
    """A logged-in connection. `unread` is plaintext that was read behind ServerInfo."""

    sock: socket.socket
    key: bytes
    unread: bytes = b""
    records: RecordLayer | None = None

    def detach(self) -> int:
        """Give the socket's descriptor away."""
        return self.sock.detach()

    def close(self) -> None:
        """Close the connection, unless its descriptor was given away."""
        self.sock.close()


@dataclass(slots=True)
class _Link:
    """A connected socket, its TLS records if any, and plaintext that was read but not used."""

    sock: socket.socket
    records: RecordLayer | None = None
    unread: bytearray = field(default_factory=bytearray)

    async def receive(self) -> bytes:
        """Return what the socket has. ConnectionError at the end of the stream."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, 16384)
        if not data:
            raise ConnectionError("the relay closed the connection")
        return data

    async def transmit(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def shake_hands(self, trust: ClientContext, host: str) -> None:
        """Begin TLS 1.3, the only one whose keys can be given to the load."""
        handshake = Handshake(trust, host)
        while not handshake.step():
            await self.transmit(handshake.take_output())
            handshake.feed(await self.receive())
        await self.transmit(handshake.take_output())
        if handshake.version != "TLSv1.3":
            raise ProtocolError(f"a load needs TLS 1.3; this is {handshake.version}")
        self.records = handshake.records()
        self.unread += self.records.open()

    async def fill(self) -> None:
        """Read more plaintext."""
        data = await self.receive()
        self.unread += self.records.open(data) if self.records else data

    async def write(self, data: bytes) -> None:
        await self.transmit(self.records.seal(data) if self.records else data)

    async def take(self, n: int) -> bytes:
        """Return the next `n` bytes."""
        while len(self.unread) < n:
            await self.fill()
        data = bytes(self.unread[:n])
        del self.unread[:n]
        return data

    async def take_through(self, mark: bytes, limit: int) -> bytes:
        """Return everything up to and including `mark`."""
        while (end := self.unread.find(mark)) < 0:
            if len(self.unread) > limit:
                raise ProtocolError(f"no end of the HTTP answer within {limit} bytes")
            await self.fill()
        return await self.take(end + len(mark))

    async def take_frame(self) -> tuple[int, bytes]:
        """Return the next frame's type and payload."""
        frame_type, length = HEADER.unpack(await self.take(HEADER_SIZE))
        if length > MAX_CLIENT_FRAME_SIZE:
            raise ProtocolError(f"a frame of {length} bytes")
        return frame_type, await self.take(length)


async def join(target: Target, address: tuple[str, int], source: str = "") -> Joined:
    """Log one new client in to `target` at `address` (PROTOCOL §3, §9.3), from `source` if given.

    Raises DialError, naming the relay and the cause, when that fails in any way.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        async with asyncio.timeout(LOGIN_LIMIT_S):
            return await _join(target, address, sock, source)
    except (OSError, ProtocolError, TlsError) as error:
        sock.close()
        raise DialError(f"{target.url}: {_cause(error)}") from error
    except BaseException:
        sock.close()
        raise


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no login within {LOGIN_LIMIT_S:.0f} s"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text shows the address as a tuple
    return str(error)


async def _join(
    target: Target, address: tuple[str, int], sock: socket.socket, source: str
) -> Joined:
    sock.setblocking(False)
    if source:
        # The port comes with the connection: before that it would be taken for every relay.
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOT_SENT_LIMIT_BYTES)
    await asyncio.get_running_loop().sock_connect(sock, address)
    link = _Link(sock)
    if target.tls:
        await link.shake_hands(target.tls, target.host)
    await _upgrade(link, target)
    key = await _login(link, target)
    return Joined(sock, key, bytes(link.unread), link.records)


async def _upgrade(link: _Link, target: Target) -> None:
    request = (
        f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n"
        "Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
    )
    await link.write(request.encode())
    head = await link.take_through(b"\r\n\r\n", HEAD_LIMIT_BYTES)
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["101"]:
        raise ProtocolError(f"it did not upgrade to DERP but answered {status!r}")


async def _login(link: _Link, target: Target) -> bytes:
    """Exchange the boxes; return the new client's public key."""
    server = parse_server_key(*await link.take_frame())
    private = NodePrivate.generate()
    box = private.box(server)
    await link.write(client_info_frame(private.public(), box, ClientInfo(can_ack_pings=True)))
    frame_type, payload = await link.take_frame()
    if frame_type != FrameType.SERVER_INFO:
        raise ProtocolError(f"frame {frame_type:#04x} where ServerInfo was expected")
    if target.check_box:
        open_server_info(box, payload)
    return private.public().raw


async def join_many(
    target: Target,
    n: int,
    on_joined: Callable[[int], None] = lambda n_joined: None,
    *,
    sources: Sequence[str] = (),
) -> Sequence[Joined]:
    """Log `n` new clients in, at most LOGINS_AT_ONCE at a time.

    `on_joined` hears how many there are so far. They connect from `sources` in turn; without any,
    to a relay on 127.0.0.1, from as many loopback addresses as ports suffice for. Raises DialError when any of them fails; the
    others are closed then.
    """
    address = await _resolve(target)
    joined: list[Joined] = []
    waiting = iter(range(n))
    sources = sources or loopback_sources(address[0], n)

    async def join_some() -> None:
        for i in waiting:
            source = sources[i % len(sources)] if sources else ""
            joined.append(await join(target, address, source))
            on_joined(len(joined))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(n, LOGINS_AT_ONCE)):
                group.create_task(join_some())
    except BaseException as failure:
        for connection in joined:
            connection.close()
        if isinstance(failure, BaseExceptionGroup):
            raise failure.exceptions[0] from None
        raise
    return joined


def loopback_sources(host: str, n: int) -> list[str]:
    """Return 127.0.0.1, .2, … for more clients than one address has ports; [] when not needed."""
    n_sources = -(-n // CLIENTS_PER_SOURCE)
    if n_sources < 2 or ":" in host or not ipaddress.ip_address(host).is_loopback:
        return []
    return [str(ipaddress.ip_address("127.0.0.1") + i) for i in range(n_sources)]


async def _resolve(target: Target) -> tuple[str, int]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DialError(f"{target.url}: {error.strerror}") from error
    host, port = found[0][4][:2]
    return str(host), int(port)
