"""The relay's end of a connection, driven frame by frame by a test.

It uses the package's protocol functions over a socket pair, and can send anything to a
client, valid or not.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastderp.client import Backoff, Client, HTTPClient
from fastderp.wire import login
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.protocol import HEADER, frame

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def stream_pairs() -> AsyncIterator[tuple[Pair, Pair]]:
    """Yield the two ends of one connection; both are closed afterwards."""
    ends = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
    try:
        yield ends[0], ends[1]
    finally:
        await abort(*(writer for _reader, writer in ends))


def pause_reading(end: asyncio.StreamWriter) -> None:
    """Stop reading at this end of a connection, so that the other end has to wait."""
    assert isinstance(end.transport, asyncio.Transport)
    end.transport.pause_reading()


async def fill(client: Client | HTTPClient) -> None:
    """Send to a relay that does not read until nothing more leaves, for 100 turns of 1 ms."""
    n_full = 0
    while n_full < 100:
        n_full = 0 if client.try_send(NodePublic(b"\x11" * 32), bytes(65536)) else n_full + 1
        await asyncio.sleep(0.001)


async def abort(*writers: asyncio.StreamWriter) -> None:
    """Close at once, and wait for the end."""
    for writer in writers:
        writer.transport.abort()
        # CancelledError: a previous wait was cancelled.
        with suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()
    await asyncio.sleep(0)


class RelayEnd:
    """One accepted connection; `login` reads the client's key and ClientInfo."""

    def __init__(self, streams: Pair, key: NodePrivate) -> None:
        self.reader, self.writer = streams
        self.key = key
        self.login: login.ClientLogin | None = None

    def send(self, frame_type: int, *parts: bytes) -> None:
        self.writer.write(frame(frame_type, *parts))

    async def next_frame(self) -> tuple[int, bytes]:
        frame_type, length = HEADER.unpack(await self.reader.readexactly(HEADER.size))
        return frame_type, await self.reader.readexactly(length)

    async def accept_login(self, info: ServerInfo | None = ServerInfo()) -> login.ClientLogin:
        """Send ServerKey, read ClientInfo and answer it unless `info` is None."""
        self.writer.write(login.server_key_frame(self.key.public_key))
        frame_type, payload = await self.next_frame()
        login.check_client_info_header(frame_type, len(payload))
        self.login = login.open_client_info(self.key, payload)
        if info is not None:
            self.writer.write(self.login.server_info_frame(info))
        return self.login

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def logged_in(
    info: ServerInfo = ServerInfo(), **options: Any
) -> AsyncIterator[tuple[Client, RelayEnd]]:
    """Yield a client after ServerInfo that returns every message, and the relay's end."""
    options = {"control_messages": True} | options
    async with stream_pairs() as (near, far):
        relay = RelayEnd(far, NodePrivate.generate())
        client, _ = await asyncio.gather(
            Client.handshake(near, NodePrivate.generate(), **options), relay.accept_login(info)
        )
        assert await client.recv() == info
        yield client, relay


@asynccontextmanager
async def refused() -> AsyncIterator[Client]:
    """Yield a client whose relay has closed the connection instead of accepting the login."""
    async with stream_pairs() as (near, far):
        relay = RelayEnd(far, NodePrivate.generate())
        client, _ = await asyncio.gather(
            Client.handshake(near, NodePrivate.generate()), relay.accept_login(None)
        )
        await relay.close()
        yield client


class FakeServer:
    """A relay's HTTP port. Each request is answered with 101 and waits in `accepted`.

    A fast start gets no answer. `refuse`, when set, is sent instead of a 101.
    """

    def __init__(self) -> None:
        self.key = NodePrivate.generate()
        self.accepted: asyncio.Queue[tuple[bytes, RelayEnd]] = asyncio.Queue()
        self.refuse = b""
        self.tls: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def port(self) -> int:
        assert self._server
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def client(self, **options: Any) -> HTTPClient:
        """Return a new client of the relay that does not wait between its attempts to connect."""
        options = {"backoff": Backoff(0, 0)} | options
        return HTTPClient(f"http://127.0.0.1:{self.port}/derp", NodePrivate.generate(), **options)

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)

    async def next_login(self, info: ServerInfo | None = ServerInfo()) -> tuple[bytes, RelayEnd]:
        """Return the next request's head and the connection, logged in."""
        head, relay = await self.accepted.get()
        await relay.accept_login(info)
        return head, relay

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        if self.refuse:
            writer.write(self.refuse)
            writer.close()
            return
        if b"\r\nDerp-Fast-Start: 1\r\n" not in head:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n")
        self.accepted.put_nowait((head, RelayEnd((reader, writer), self.key)))

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        await abort(*self._writers)


@asynccontextmanager
async def fake_server(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeServer]:
    """Yield a FakeServer listening on 127.0.0.1."""
    server = FakeServer()
    await server.start(tls)
    try:
        yield server
    finally:
        await server.stop()
