"""A DERP connection as its client sees it, over a stream that is already there (PROTOCOL §3, §4).

One task receives at a time; any number of tasks send. Belongs to the stream's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Self

from fastderp.errors import ConnectionClosed, ConnectionLost, DerpError, PingTimeout
from fastderp.net.stream import AnyStream, Stream
from fastderp.util.token_bucket import TokenBucket
from fastderp.wire import login
from fastderp.wire.keys import Box, MeshKey, NodePrivate, NodePublic
from fastderp.wire.protocol import (
    HEADER_SIZE,
    KEEPALIVE_S,
    KEY_SIZE,
    MAX_CLIENT_FRAME_SIZE,
    MAX_PACKET_SIZE,
    MAX_SEND_PACKET_SIZE,
    PING_SIZE,
    FrameType,
    Message,
    Pong,
    ServerInfo,
    frame,
    parse_message,
)

# Two missed keep-alives.
READ_TIMEOUT_S = 2 * KEEPALIVE_S
FORWARD_TIMEOUT_S = 5.0
PING_TIMEOUT_S = 5.0

_log = logging.getLogger("fastderp.client")


class Client:
    """A connection to a relay, made by `Client.handshake`.

        async with await Client.handshake((reader, writer), key) as client:
            await client.send(peer, b"hello")
            async for message in client:
                ...

    The first message received is ServerInfo. Once receiving or sending has failed the client is of
    no more use: every later call raises the same error. What sends raises ConnectionClosed when the
    connection is over, ConnectionLost when it broke, and waits while the relay takes no data. PROTOCOL §2, §4.
    """

    def __init__(
        self, stream: Stream, private_key: NodePrivate, server: NodePublic, box: Box
    ) -> None:
        """Used by `handshake`, which callers want instead.

        `stream` is behind the login of `private_key` at the relay with the key `server`; `box` is between these two.
        """
        self._stream = stream
        self._public_key = private_key.public_key
        self._server_public_key = server
        self._box = box
        self._server_info: ServerInfo | None = None
        self._limiter: TokenBucket | None = None
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._error: DerpError | None = None
        self.n_packets_held_back = 0
        """Packets not sent because of the rate the relay asked for."""

    @classmethod
    async def handshake(
        cls,
        stream: AnyStream,
        private_key: NodePrivate,
        *,
        can_ack_pings: bool = False,
        is_prober: bool = False,
        mesh_key: MeshKey | None = None,
        server_public_key: NodePublic | None = None,
        app_name: str = "",
    ) -> Client:
        """Log in over `stream` and return the client, which then owns the stream.

        `stream` is a (reader, writer) pair of asyncio streams or one object with their methods
        `read`, `write`, `drain`, `close`, `wait_closed` and `get_extra_info`, on which the relay is
        about to send its key.

        Args:
            private_key: whose public half the client is reached under.
            can_ack_pings: promise to answer every Ping with `send_pong`.
            is_prober: tell the relay that this client only measures.
            mesh_key: the region's secret, which gives mesh privileges.
            server_public_key: the relay's key, when it is known: then the relay's first frame is not waited for. A zero key is none.
            app_name: name of the program, for the relay's statistics.

        Does not wait for the relay's answer: a refused login shows as a ConnectionLost in `recv`. Raises ProtocolError when the other
        side is no relay, ConnectionClosed when it ends the connection, and BoxError for a key of the relay that is of no use; the
        stream is closed then. PROTOCOL §3.
        """
        connection = Stream.of(stream)
        info = login.ClientInfo(
            can_ack_pings=can_ack_pings,
            is_prober=is_prober,
            mesh_key=mesh_key or MeshKey(),
            app_name=app_name,
        )
        try:
            server = server_public_key
            if server is None or server.is_zero:
                first = await connection.read_frame(MAX_CLIENT_FRAME_SIZE, READ_TIMEOUT_S)
                server = login.parse_server_key(*first)
            box = private_key.box(server)
            connection.write(login.client_info_frame(private_key.public_key, box, info))
            await connection.drain()
        except BaseException:
            connection.abort()
            raise
        return cls(connection, private_key, server, box)

    @property
    def public_key(self) -> NodePublic:
        """The key this client is reached under."""
        return self._public_key

    @property
    def server_public_key(self) -> NodePublic:
        """The relay's key."""
        return self._server_public_key

    @property
    def local_addr(self) -> tuple[str, int]:
        """Our address and port. ConnectionClosed when the connection is over or has none."""
        self._check_alive()
        address = self._stream.get_extra_info("sockname")
        if not isinstance(address, tuple):
            raise ConnectionClosed("the connection has no local address")
        return address[0], address[1]

    async def recv(self) -> Message:
        """Wait for the next message from the relay.

        Frames that are too short for their type or unknown are skipped, and so are the pongs
        that `ping` waits for. Raises ConnectionClosed at an orderly end, ConnectionLost when the
        connection broke or nothing came for 120 s, ProtocolError for frames that end the connection.
        PROTOCOL §4.
        """
        self._check_alive()
        try:
            while True:
                received = await self._stream.read_frame(MAX_CLIENT_FRAME_SIZE, READ_TIMEOUT_S)
                message = self._understand(*received)
                if message is not None:
                    return message
        except DerpError as error:
            raise self._fail(error) from error.__cause__

    def __aiter__(self) -> Self:
        """Iterate over messages until an orderly end; other failures raise as in `recv`."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.recv()
        except ConnectionLost:
            raise
        except ConnectionClosed:
            raise StopAsyncIteration from None

    async def send(self, destination: NodePublic, data: bytes) -> None:
        """Send a packet, `data` of at most 65536 bytes, to the client `destination`.

        The packet is dropped silently, and counted in `n_packets_held_back`, when it would exceed
        the rate the relay asked for. ValueError for a larger packet. PROTOCOL §3.2, §4.
        """
        _check_packet(data)
        if self._limiter and not self._limiter.take(HEADER_SIZE + KEY_SIZE + len(data)):
            self.n_packets_held_back += 1
            return
        await self._write(frame(FrameType.SEND_PACKET, destination.raw, data))

    async def forward_packet(
        self, source: NodePublic, destination: NodePublic, data: bytes
    ) -> None:
        """Send a packet to `destination` in the name of `source`. A relay closes on this without its mesh key.

        `data` has at most 65536 bytes; ValueError for more. The connection is closed, with ConnectionLost, when the relay does not
        take it in 5 s. PROTOCOL §7.6.
        """
        _check_packet(data)
        try:
            async with asyncio.timeout(FORWARD_TIMEOUT_S):
                await self._write(
                    frame(FrameType.FORWARD_PACKET, source.raw, destination.raw, data)
                )
        except TimeoutError:
            error = ConnectionLost(f"the relay took no data for {FORWARD_TIMEOUT_S:g} s")
            raise self._fail(error) from None

    async def note_preferred(self, preferred: bool) -> None:
        """Tell the relay whether it is this client's home, its `preferred` relay; it only counts them. PROTOCOL §6.6."""
        await self._write(frame(FrameType.NOTE_PREFERRED, b"\1" if preferred else b"\0"))

    async def close_peer(self, target: NodePublic) -> None:
        """Ask the relay to close the connections of `target`. It closes ours without its mesh key. PROTOCOL §5."""
        await self._write(frame(FrameType.CLOSE_PEER, target.raw))

    async def watch_connection_changes(self) -> None:
        """Ask for a PeerPresent of every client, now and later. A relay closes on this without its mesh key. PROTOCOL §7.2."""
        await self._write(frame(FrameType.WATCH_CONNS))

    async def send_ping(self, data: bytes) -> None:
        """Send a Ping of 8 bytes of `data`; the Pong comes as a message. ValueError for other sizes. PROTOCOL §2.

        See `ping` for both in one.
        """
        await self._write(frame(FrameType.PING, _ping_data(data)))

    async def send_pong(self, data: bytes) -> None:
        """Answer a Ping with its 8 bytes of `data`. ValueError for other sizes. PROTOCOL §2."""
        await self._write(frame(FrameType.PONG, _ping_data(data)))

    async def ping(self, timeout_s: float = PING_TIMEOUT_S) -> float:
        """Ping the relay and return the seconds until its pong came.

        Another task has to receive meanwhile. Raises PingTimeout after `timeout_s` seconds, and what ended the connection when
        that happens before. PROTOCOL §13.
        """
        loop = asyncio.get_running_loop()
        data = secrets.token_bytes(PING_SIZE)
        answered = self._pings[data] = loop.create_future()
        started_s = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                await self.send_ping(data)
                await answered
        except TimeoutError:
            raise PingTimeout(
                f"no pong within {timeout_s:g} s; is another task receiving?"
            ) from None
        finally:
            del self._pings[data]
        return loop.time() - started_s

    async def close(self) -> None:
        """Close the connection, waiting at most 1 s for what is unsent; a receiver is told with ConnectionClosed. May be called again."""
        self._end(ConnectionClosed("the client is closed"))
        self._stream.close()
        await self._stream.wait_closed()

    def abort(self) -> None:
        """Close at once, without waiting for what is still unsent."""
        self._end(ConnectionClosed("the client is closed"))
        self._stream.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = f"over: {self._error}" if self._error else "open"
        return f"<Client {self._public_key.short} at {self._server_public_key.short}, {state}>"

    def _understand(self, frame_type: int, payload: bytes) -> Message | None:
        """Return the message to hand out, or None for a frame that is skipped or used up here."""
        if frame_type == FrameType.SERVER_INFO:
            return self._obey(login.open_server_info(self._box, payload))
        message = parse_message(frame_type, payload)
        if message is None:
            _log.debug("skipped a frame of type %#04x with %d bytes", frame_type, len(payload))
        elif isinstance(message, Pong) and (waiter := self._pings.get(message.data)):
            if not waiter.done():
                waiter.set_result(None)
            return None
        return message

    def _obey(self, info: ServerInfo) -> ServerInfo:
        """Send no faster than the relay asks."""
        self._server_info = info
        rate = info.token_bucket_bytes_per_second
        # A burst of 0 is unsaid: then a second's worth, and at least the largest packet.
        burst = info.token_bucket_bytes_burst or max(rate, HEADER_SIZE + MAX_SEND_PACKET_SIZE)
        clock = asyncio.get_running_loop().time
        self._limiter = TokenBucket(rate, burst, clock=clock) if rate > 0 else None
        return info

    async def _write(self, data: bytes) -> None:
        self._check_alive()
        try:
            self._stream.write(data)
            await self._stream.drain()
        except ConnectionClosed as error:
            raise self._fail(error) from error.__cause__

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    def _fail(self, error: DerpError) -> DerpError:
        """Give the connection up; return the first error that happened to it, which is the cause."""
        if self._server_info is None and type(error) is ConnectionClosed:
            # A relay refuses a login by closing without a word.
            error = ConnectionLost("the relay closed the connection instead of accepting the login")
        self._stream.abort()
        return self._end(error)

    def _end(self, error: DerpError) -> DerpError:
        if self._error is None:
            self._error = error
        for waiter in self._pings.values():
            if not waiter.done():
                waiter.set_exception(self._error)
        return self._error


def _check_packet(data: bytes) -> None:
    if len(data) > MAX_PACKET_SIZE:
        raise ValueError(f"a packet has at most {MAX_PACKET_SIZE} bytes, not {len(data)}")


def _ping_data(data: bytes) -> bytes:
    if len(data) != PING_SIZE:
        raise ValueError(f"a ping has {PING_SIZE} bytes, not {len(data)}")
    return data
