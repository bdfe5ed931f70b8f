"""The client side of a DERP connection, over the caller's stream (PROTOCOL §3, §4).

Any number of tasks send, one receives at a time. Two internal tasks serve each connection: one
reads ahead, up to a limit, and answers pings; the other writes. Belongs to the stream's event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from asyncio import _get_running_loop as running_loop
from collections.abc import Callable, Iterable
from typing import Self

from fastderp.client.arguments import (
    BytesLike,
    bytes_of,
    check_app_name,
    check_limit,
    check_packet_size,
    ping_data,
    wrong_loop_error,
)
from fastderp.client.inbox import Inbox
from fastderp.client.outbox import Outbox, SendRate
from fastderp.errors import ConnectionClosed, ConnectionLost, DerpError, PingTimeout
from fastderp.net.stream import AnyStream, Stream
from fastderp.util.arguments import check_type
from fastderp.util.log_lines import logger
from fastderp.wire import login
from fastderp.wire.keys import Box, MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import KeepAlive, Message, Ping, Pong, parse_message
from fastderp.wire.protocol import (
    HEADER,
    HEADER_SIZE,
    KEEPALIVE_S,
    KEY_SIZE,
    MAX_CLIENT_FRAME_SIZE,
    PING_SIZE,
    FrameType,
    frame,
)

# Two missed keep-alives.
READ_TIMEOUT_S = 2 * KEEPALIVE_S
FORWARD_TIMEOUT_S = 5.0
PING_TIMEOUT_S = 5.0

_PACKET_HEAD_SIZE = HEADER_SIZE + KEY_SIZE
_SEND_PACKET = int(FrameType.SEND_PACKET)

_log = logger("fastderp.client")


class Client:
    """A connection to a relay, made by `Client.handshake`. PROTOCOL §2, §4.

        async with await Client.handshake((reader, writer), key) as client:
            await client.send(peer, b"hello")
            async for message in client:
                ...

    All sending calls wait while the relay accepts no more data: the client holds up to 64 KiB in
    addition to the stream's buffer. A call that is cancelled or times out while it waits has sent
    nothing; a call that returns has queued its frame, in order.

    The client keeps up to 512 KiB of received messages for `recv`; at that limit it stops reading
    from the relay. The first message is ServerInfo. The client handles KeepAlive, Ping and Pong
    internally unless it was made with `control_messages`.

    Once the connection is over every call raises the same error; `recv` first returns the earlier
    messages. The error is ConnectionClosed after an orderly end, ConnectionLost when the
    connection broke, ProtocolError for a frame that ends it. Wrong use raises ConcurrencyError or
    WrongLoopError and changes nothing.
    """

    def __init__(
        self,
        stream: Stream,
        private_key: NodePrivate,
        server: NodePublic,
        box: Box,
        *,
        can_ack_pings: bool = True,
        control_messages: bool = False,
    ) -> None:
        """Wrap a stream that is logged in; callers use `handshake`.

        `private_key` has logged in over `stream` at the relay with the key `server`; `box` is
        between these two. `can_ack_pings` and `control_messages` are those of `handshake`.
        """
        self._stream = stream
        self._public_key = private_key.public_key
        self._server_public_key = server
        self._box = box
        self._can_ack_pings = can_ack_pings
        self._control_messages = control_messages
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._error: DerpError | None = None
        self._server_info: ServerInfo | None = None
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        # The data of the ping whose pong is due, and when it was sent; the event is set while there
        # is none.
        self._due_ping = b""
        self._due_since_s = 0.0
        self._may_ping = asyncio.Event()
        self._may_ping.set()
        self._on_message: Callable[[Message], object] | None = None
        self._on_end: Callable[[Client, DerpError], object] | None = None
        self._inbox = Inbox(stream, self._understand, self.fail)
        self.take_ready: Callable[[], Message | None] = self._inbox.take_ready
        """Return the next received message; None where `recv` would wait or raise."""
        self._silence = self._loop.call_later(READ_TIMEOUT_S, self._check_silence)
        self._outbox = Outbox(stream, self.fail)
        # The frame head for the latest destination and size, which most packets share with the
        # previous one.
        self._latest_head: tuple[NodePublic | None, int, bytes] = (None, -1, b"")
        # Bytes that have arrived are read after the caller has the client.
        self._loop.call_soon(self._start_reading)

    @classmethod
    async def handshake(
        cls,
        stream: AnyStream,
        private_key: NodePrivate,
        *,
        can_ack_pings: bool = True,
        is_prober: bool = False,
        mesh_key: MeshKey | None = None,
        server_public_key: NodePublic | None = None,
        app_name: str = "",
        control_messages: bool = False,
    ) -> Client:
        """Log in over `stream` and return the client, which then owns the stream.

        `stream` is a (reader, writer) pair of asyncio streams or one object with their methods
        `read`, `write`, `drain`, `close`, `wait_closed` and `get_extra_info`, on which the relay is
        about to send its key.

        Args:
            private_key: the client's key; its public half is the client's address.
            can_ack_pings: answer every Ping of the relay, and announce that at the login.
            is_prober: announce to the relay that this client only measures.
            mesh_key: the region's secret, which gives mesh privileges.
            server_public_key: the relay's key if it is known: the login is then sent before the
                relay's first frame arrives. A zero key counts as unknown.
            app_name: name of the program, for the relay's statistics: at most 32 characters of
                printable ASCII.
            control_messages: return KeepAlive, Ping and Pong from `recv`, and leave the answers to
                the caller's `send_pong`.

        Does not wait for the relay's answer, which `wait_accepted` does. Raises ProtocolError when
        the peer is not a relay, ConnectionClosed when it ends the connection, BoxError for an
        unusable key of the relay, TypeError for an argument that is not a key, ValueError for an
        unusable `app_name`. All of them close the stream. PROTOCOL §3.
        """
        connection = Stream.of(stream)
        try:
            check_type("private_key", private_key, NodePrivate)
            if mesh_key is not None:
                check_type("mesh_key", mesh_key, MeshKey)
            if server_public_key is not None:
                check_type("server_public_key", server_public_key, NodePublic)
            check_app_name(app_name)
            info = login.ClientInfo(
                can_ack_pings=can_ack_pings,
                is_prober=is_prober,
                mesh_key=mesh_key or MeshKey(),
                app_name=app_name,
            )
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
        return cls(
            connection,
            private_key,
            server,
            box,
            can_ack_pings=can_ack_pings,
            control_messages=control_messages,
        )

    @property
    def public_key(self) -> NodePublic:
        """The client's public key, which is its address."""
        return self._public_key

    @property
    def server_public_key(self) -> NodePublic:
        """The relay's key."""
        return self._server_public_key

    @property
    def server_info(self) -> ServerInfo | None:
        """The relay's ServerInfo, with its rate; None before it accepts the login.

        PROTOCOL §3.2.
        """
        return self._server_info

    @property
    def is_over(self) -> bool:
        """Whether the client has detected the end of the connection."""
        return self._error is not None

    @property
    def local_addr(self) -> tuple[str, int]:
        """Our address and port. Raises ConnectionClosed when it is over or has no address."""
        self._check_alive()
        address = self._stream.get_extra_info("sockname")
        if not isinstance(address, tuple):
            raise ConnectionClosed("the connection has no local address")
        return address[0], address[1]

    async def wait_accepted(self) -> None:
        """Wait until the relay has accepted the login: from then on, peers can reach this client.

        Raises ConnectionLost when the relay refused, which it does by closing, and the errors of
        a connection that ends otherwise. PROTOCOL §3.
        """
        self._check_use()
        await asyncio.shield(self._accepted)

    # Sending

    async def send(self, destination: NodePublic, data: BytesLike) -> None:
        """Send a packet to `destination`; wait for room and for the relay's rate.

        `data` is bytes, or a bytearray or memoryview, of at most 65536 bytes. A cancelled call
        sends nothing. The relay silently drops the packet when `destination` is not connected or
        does not read it: DERP promises no delivery.

        Raises TypeError and ValueError for other arguments, ConnectionClosed, ConnectionLost or
        ProtocolError when the connection is over. PROTOCOL §3.2, §4.
        """
        if not self.try_send(destination, data):
            data = bytes(data)
            await self._outbox.reserve(_PACKET_HEAD_SIZE + len(data), rated=True)
            self._check_alive()
            self._outbox.put(self._packet_head(destination, len(data)), data)

    def try_send(self, destination: NodePublic, data: BytesLike) -> bool:
        """Send `data` to `destination` if that needs no waiting; return whether it was sent.

        Drops the packet and returns False when the connection or the relay's rate is full, or
        other tasks wait for it. Raises the errors of `send`. PROTOCOL §4.
        """
        if running_loop() is not self._loop:
            raise wrong_loop_error(self._pid)
        if self._error is not None:
            raise self._error.with_traceback(None)
        if type(data) is not bytes:
            data = bytes_of("data", data)
        size = len(data)
        latest, latest_size, head = self._latest_head
        if destination is not latest or size != latest_size:
            head = self._packet_head(destination, size)
        return self._outbox.try_put((head, data), _PACKET_HEAD_SIZE + size, rated=True)

    async def send_many(self, packets: Iterable[tuple[NodePublic, BytesLike]]) -> None:
        """Send `packets`, pairs of destination and data, in order, as `send` does each.

        Costs less than a call of `send` for each. A cancelled or failed call has sent the first
        packets, and not the others. Raises the errors of `send`. PROTOCOL §3.2, §4.
        """
        for destination, data in packets:
            if not self.try_send(destination, data):
                await self.send(destination, data)

    async def forward_packet(
        self, source: NodePublic, destination: NodePublic, data: BytesLike
    ) -> None:
        """Forward a packet from `source` to `destination`.

        The relay closes the connection of a client without its mesh key.

        `data` has at most 65536 bytes. Closes the connection and raises ConnectionLost when the
        relay does not read it within 5 s. Raises the errors of `send`. PROTOCOL §7.6.
        """
        check_type("source", source, NodePublic)
        check_type("destination", destination, NodePublic)
        data = bytes_of("data", data)
        check_packet_size(len(data))
        whole = frame(FrameType.FORWARD_PACKET, source.raw, destination.raw, data)
        try:
            async with asyncio.timeout(FORWARD_TIMEOUT_S):
                await self._put(whole)
        except TimeoutError:
            error = ConnectionLost(f"the relay read no data for {FORWARD_TIMEOUT_S:g} s")
            raise self.fail(error) from None

    async def note_preferred(self, preferred: bool) -> None:
        """Report to the relay whether it is this client's home (`preferred`). PROTOCOL §6.6."""
        await self._put(frame(FrameType.NOTE_PREFERRED, b"\1" if preferred else b"\0"))

    async def close_peer(self, target: NodePublic) -> None:
        """Ask the relay to close the connections of `target`.

        Without its mesh key, the relay closes this connection instead. PROTOCOL §5.
        """
        check_type("target", target, NodePublic)
        await self._put(frame(FrameType.CLOSE_PEER, target.raw))

    async def watch_connection_changes(self) -> None:
        """Ask for a PeerPresent of every client, now and later.

        A relay closes on this without its mesh key. PROTOCOL §7.2.
        """
        await self._put(frame(FrameType.WATCH_CONNS))

    async def send_ping(self, data: BytesLike) -> None:
        """Send a Ping with the 8 bytes `data`. Raises ValueError for other sizes. PROTOCOL §2.

        A client with `control_messages` receives the Pong as a message. `ping` also waits for it.
        A relay ignores a ping that arrives before it has answered the previous one.
        """
        data = ping_data(data)
        is_first = self._may_ping.is_set()
        if is_first:
            self._due_ping, self._due_since_s = data, self._loop.time()
            self._may_ping.clear()
        try:
            await self._put(frame(FrameType.PING, data))
        except BaseException:
            if is_first:
                self._may_ping.set()
            raise

    async def send_pong(self, data: BytesLike) -> None:
        """Answer a Ping with its 8 bytes `data`. Raises ValueError for other sizes. PROTOCOL §2."""
        await self._put(frame(FrameType.PONG, ping_data(data)))

    async def ping(self, timeout_s: float = PING_TIMEOUT_S) -> float:
        """Ping the relay and return the seconds until its pong arrived.

        Calls in several tasks ping one after another, because a relay answers one ping at a time. A
        pong that is due for 5 s counts as lost.

        Raises PingTimeout after `timeout_s` seconds, for example because no task reads the messages
        before the pong, and the connection's error when it ends earlier. PROTOCOL §13.
        """
        self._check_use()
        data = secrets.token_bytes(PING_SIZE)
        answered = self._pings[data] = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                while not self._may_ping.is_set():
                    await self._wait_for_due_pong()
                started_s = self._loop.time()
                await self.send_ping(data)
                await answered
        except TimeoutError:
            full = ": received messages wait for recv" if self._inbox.is_full else ""
            raise PingTimeout(f"no pong within {timeout_s:g} s{full}") from None
        finally:
            del self._pings[data]
        return self._loop.time() - started_s

    async def _wait_for_due_pong(self) -> None:
        lost_s = self._due_since_s + PING_TIMEOUT_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(lost_s):
                await self._may_ping.wait()
        if self._loop.time() >= self._due_since_s + PING_TIMEOUT_S:
            self._may_ping.set()

    # Receiving

    async def recv(self) -> Message:
        """Wait for the next message from the relay. A cancelled call loses no message.

        Skips frames that are too short for their type or unknown. Raises ConnectionClosed at an
        orderly end, ConnectionLost when the connection broke or was silent for 120 s,
        ProtocolError for frames that end the connection, ConcurrencyError while another task
        receives. PROTOCOL §4.
        """
        if self._inbox.must_wait or running_loop() is not self._loop:
            await self._wait_for_message()
        return self._inbox.take()

    async def recv_many(self, limit: int | None = None) -> list[Message]:
        """Wait for a message; return up to `limit` of the messages that have arrived.

        Raises the errors of `recv`. PROTOCOL §4.

        Costs less per message than `recv` when many arrive.
        """
        check_limit(limit)
        if self._inbox.must_wait or running_loop() is not self._loop:
            await self._wait_for_message()
        return self._inbox.take_many(limit)

    def __aiter__(self) -> Self:
        """Iterate over messages until an orderly end; other failures raise as in `recv`."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.recv()
        except ConnectionClosed as error:
            if type(error) is ConnectionClosed:
                raise StopAsyncIteration from None
            raise

    # The end

    async def close(self) -> None:
        """Close the connection after up to 1 s for writing unsent frames.

        Receiving tasks get ConnectionClosed; messages they have not read are discarded. Safe to
        repeat.
        """
        if running_loop() is not self._loop:
            raise wrong_loop_error(self._pid)
        if self._error is None:
            with contextlib.suppress(ConnectionClosed):  # It was broken before.
                self._outbox.flush()
        self._end(ConnectionClosed("the client is closed"))
        self._inbox.take_many()
        self._stream.close()
        await self._stream.wait_closed()

    def abort(self) -> None:
        """Close at once and discard unsent frames."""
        self._end(ConnectionClosed("the client is closed"))
        self._inbox.take_many()
        self._stream.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = f"over: {self._error}" if self._error else "open"
        return f"<Client {self._public_key.short} at {self._server_public_key.short}, {state}>"

    # For HTTPClient

    def observe(
        self,
        on_message: Callable[[Message], object],
        on_end: Callable[[Client, DerpError], object],
    ) -> None:
        """Call `on_message` with all but packets, and `on_end` once with the final error."""
        self._on_message = on_message
        self._on_end = on_end

    def take_all_ready(self, limit: int | None) -> list[Message]:
        """Return up to `limit` of the received messages without waiting."""
        return [] if self._inbox.must_wait else self._inbox.take_many(limit)

    def take_unread(self) -> list[Message]:
        """Remove and return the messages that `recv` has not returned yet."""
        return self._inbox.take_many()

    def fail(self, error: DerpError) -> DerpError:
        """Abort the connection; return the connection's first error."""
        if self._server_info is None and type(error) is ConnectionClosed:
            # A relay refuses a login by closing the connection.
            error = ConnectionLost("the relay closed the connection instead of accepting the login")
        self._stream.abort()
        return self._end(error)

    # Reading

    def _start_reading(self) -> None:
        if self._error is None:
            self._inbox.start()

    def _understand(self, frame_type: int, payload: bytes) -> Message | None:
        """Return the message of a frame that is no packet; None if the client handles it."""
        message: Message | None
        if frame_type == FrameType.SERVER_INFO:
            message = self._obey(login.open_server_info(self._box, payload))
        else:
            message = parse_message(frame_type, payload)
            if message is None:
                _log.debug("skipped a frame of type %#04x with %d bytes", frame_type, len(payload))
                return None
        if isinstance(message, Pong):
            if message.data == self._due_ping:
                self._may_ping.set()
            waiter = self._pings.get(message.data)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
                return None
        if isinstance(message, KeepAlive | Ping | Pong):
            if self._control_messages:
                return message
            if isinstance(message, Ping) and self._can_ack_pings:
                self._answer(message)
            return None
        if self._on_message is not None:
            self._on_message(message)
        return message

    def _answer(self, ping: Ping) -> None:
        """Send the pong if there is room; drop it for a relay that does not read its pongs."""
        pong = frame(FrameType.PONG, ping.data)
        self._outbox.try_put((pong,), len(pong), rated=False)

    def _obey(self, info: ServerInfo) -> ServerInfo:
        """Apply the relay's rate limit."""
        self._server_info = info
        rate = info.token_bucket_bytes_per_second
        self._outbox.set_rate(
            SendRate(rate, info.token_bucket_bytes_burst, self._loop.time) if rate > 0 else None
        )
        if not self._accepted.done():
            self._accepted.set_result(None)
        return info

    async def _wait_for_message(self) -> None:
        self._check_loop()
        await self._inbox.wait(self._check_alive)

    def _check_silence(self) -> None:
        """Close the connection if the relay was silent for too long while we read from it."""
        now_s = self._loop.time()
        received_s = now_s if self._inbox.is_full else self._inbox.received_s
        if now_s >= received_s + READ_TIMEOUT_S:
            self.fail(ConnectionLost(f"nothing from the relay for {READ_TIMEOUT_S:g} s"))
        else:
            self._silence = self._loop.call_at(received_s + READ_TIMEOUT_S, self._check_silence)

    # Writing

    async def _put(self, whole: bytes) -> None:
        """Send a frame that the relay's rate does not count."""
        self._check_use()
        if not self._outbox.try_put((whole,), len(whole), rated=False):
            await self._outbox.reserve(len(whole), rated=False)
            self._check_alive()
            self._outbox.put(whole)

    def _packet_head(self, destination: NodePublic, size: int) -> bytes:
        """Return the head of a SendPacket frame.

        Raises TypeError or ValueError for unusable arguments.
        """
        check_type("destination", destination, NodePublic)
        check_packet_size(size)
        head = HEADER.pack(_SEND_PACKET, KEY_SIZE + size) + destination.raw
        self._latest_head = (destination, size, head)
        return head

    # Errors

    def _check_use(self) -> None:
        self._check_loop()
        self._check_alive()

    def _check_loop(self) -> None:
        if running_loop() is not self._loop:
            raise wrong_loop_error(self._pid)

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    def _end(self, error: DerpError) -> DerpError:
        """Wake all waiting tasks with the connection's first error; return that error."""
        if self._error is not None:
            return self._error
        self._error = error
        self._silence.cancel()
        self._outbox.end(error)
        for waiter in (self._accepted, *self._pings.values()):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # mark it as retrieved, in case no task waits for it
        self._may_ping.set()
        self._inbox.wake()
        if self._on_end is not None:
            self._on_end(self, error)
        return error
