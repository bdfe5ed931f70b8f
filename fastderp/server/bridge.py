"""Joins what the data plane cannot read itself (TLS 1.2, WebSocket, somebody else's streams) to a socket pair that it can. DESIGN §2.

The data plane owns one end, the loop thread pumps the other; who cannot take more makes the other side wait.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from fastderp.server.channel import Channel, farewell
from fastderp.server.stream import READ_BYTES, Poller, Stream
from fastderp.tls.errors import TlsError

# How long a client may take to read the rest of what was sent before the session ended, and to close.
FAREWELL_S = 2.0


class Bridge:
    """Two streams, each fed by the other through the channel; ends itself when either side does."""

    __slots__ = ("_channel", "_outside", "_inside", "_on_close", "_farewell")

    def __init__(
        self,
        poller: Poller,
        outside: Stream,
        channel: Channel,
        inside: socket.socket,
        on_close: Callable[[Bridge], None],
    ) -> None:
        """Take over the client's stream and our end of the pair, and start pumping."""
        self._channel = channel
        self._on_close = on_close
        self._farewell: asyncio.TimerHandle | None = None
        self._outside = outside
        self._inside = Stream(poller, inside, self._from_plane, self._plane_ended, self._plane_drained)
        outside.on_bytes = self._from_client
        outside.on_end = self._client_ended
        outside.on_drained = self._client_drained
        self._inside.resume()
        outside.resume()
        if channel.eof:
            self._end()

    def close(self) -> None:
        """Close both sides; what is on its way is lost."""
        if self._outside.closed:
            return
        if self._farewell is not None:
            self._farewell.cancel()
        self._inside.close()
        self._outside.close()
        self._on_close(self)

    def _from_client(self, data: bytes) -> None:
        try:
            plain = self._channel.open(data)
        except TlsError:
            self.close()
            return
        if not self._inside.send(plain):
            self._outside.pause()
        elif self._channel.eof:
            self._end()

    def _from_plane(self, data: bytes) -> None:
        try:
            wire = self._channel.seal(data)
        except TlsError:
            self.close()
            return
        if not self._outside.send(wire):
            self._inside.pause()

    def _plane_drained(self) -> None:
        if self._channel.eof:
            self._end()
        else:
            self._outside.resume()

    def _client_drained(self) -> None:
        if self._farewell is not None:
            self._outside.end_output()
            return
        self._inside.resume()
        if self._inside.flushed:
            self._outside.resume()

    def _client_ended(self, error: OSError | None) -> None:
        # Nothing is lost: reading goes on only when the plane's end has taken everything.
        self.close()

    def _plane_ended(self, error: OSError | None) -> None:
        self._end()

    def _end(self) -> None:
        """Leave the plane, say goodbye and wait a moment for the client to go.

        Closing on unread input would reset the connection under the goodbye.
        """
        self._inside.close()
        self._farewell = asyncio.get_running_loop().call_later(FAREWELL_S, self.close)
        self._outside.on_bytes = _ignore
        self._outside.resume()
        if self._outside.send(farewell(self._channel)):
            self._outside.end_output()


def _ignore(data: bytes) -> None:
    """Take input that nobody wants any more."""


def bridge(poller: Poller, outside: Stream, channel: Channel, bridges: set[Bridge]) -> int:
    """Start pumping between `outside` and a new socket pair; return the data plane's end. `bridges` holds it while it lives."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    bridges.add(Bridge(poller, outside, channel, ours, bridges.discard))
    return theirs.detach()


class Reader(Protocol):
    """The reading half of what `Server.accept` takes: an asyncio.StreamReader or anything like it."""

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, b"" at the end."""

    async def readexactly(self, n: int, /) -> bytes:
        """Return `n` bytes or raise asyncio.IncompleteReadError."""


class Writer(Protocol):
    """The writing half: an asyncio.StreamWriter or anything like it."""

    def write(self, data: bytes, /) -> None:
        """Send, buffering what cannot go yet."""

    async def drain(self) -> None:
        """Wait until the buffer has room."""

    def close(self) -> None:
        """Close the connection."""


async def pump_streams(reader: Reader, writer: Writer, ours: socket.socket) -> None:
    """Pump between a pair of streams and our end of a socket pair until either side ends; close both."""
    loop = asyncio.get_running_loop()

    async def inwards() -> None:
        while data := await reader.read(READ_BYTES):
            await loop.sock_sendall(ours, data)

    async def outwards() -> None:
        while data := await loop.sock_recv(ours, READ_BYTES):
            writer.write(data)
            await writer.drain()

    pumps = [asyncio.ensure_future(inwards()), asyncio.ensure_future(outwards())]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        ours.close()
        writer.close()
