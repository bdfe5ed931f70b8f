"""Joins connections that the data plane cannot read itself (TLS 1.2, WebSocket) to socket pairs.

ARCHITECTURE §2. The data plane owns one end of the pair; the loop thread pumps between the other
and the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

from fastderp.server.accept.message_channel import MessageChannel, leave
from fastderp.server.net.pump import Pump
from fastderp.server.net.stream import READ_BYTES, Poller, Stream, kernel_cause
from fastderp.server.observe.supervisor import supervisor
from fastderp.tls.channel import Channel, Plain, Tls12
from fastderp.tls.record import RecordLayer
from fastderp.util.machine import memory_bytes

# Seconds after its session's end that a client has to read the rest and to close.
DRAIN_S = 2.0
# Seconds that the data plane has to relay the frames of a client that has closed; a rate limit may
# hold them back. A keep-alive after a minute ends such a session over TCP.
REST_S = 60.0
# Limit for the incomplete messages of all clients together; each also has a separate limit. A message
# of up to one read is always kept: clients that fill the limit must not end all others.
HELD_LIMIT_BYTES = min(64 << 20, memory_bytes() // 16)

# The data plane lets the kernel hold 128 KiB that a client has not read. A bridge shares them
# between its two sockets: sealed bytes in the client's, frames in the pair. Larger buffers would
# only hold stale packets.
UNSENT_BYTES = 64 << 10
PAIR_BYTES = 32 << 10  # the kernel doubles it, for its overhead
# Unread bytes that the kernel may hold of a near client, as in the data plane.
NEAR_RECEIVE_BYTES = 212_992
NEAR_US = 2000


class Bridge(Pump):
    """A client's connection and our end of a socket pair; each gets the bytes of the other.

    Ends with either. After the end of the client the data plane still reads its last frames.
    """

    __slots__ = (
        "_held_bytes",
        "_hold",
        "_input_is_over",
        "_lost",
        "_on_close",
        "handle",
        "tls_version",
    )

    def __init__(
        self,
        poller: Poller,
        outside: Stream,
        channel: Channel,
        inside: socket.socket,
        on_close: Callable[[Bridge], None],
        hold: Callable[[int], bool],
        tls_version: str = "",
    ) -> None:
        """Take over the client's stream and our end of the pair, and start pumping.

        hold: counts bytes that all bridges together hold of incomplete messages; False when there
            are too many.
        """
        super().__init__(poller, outside, channel, inside, DRAIN_S)
        self._hold = hold
        self._held_bytes = 0
        self._lost: OSError | None = None
        # The client has closed in order.
        self._input_is_over = False
        self._on_close = on_close
        self.tls_version: str = tls_version
        # The handle of the session that reads the pair; set after the join.
        self.handle: int = 0
        self.start()

    def leave(self) -> None:
        """Announce in the closing handshake that the relay shuts down."""
        leave(self._channel)

    def session_ended(self, reason: str) -> None:
        """Note that the data plane closed its end: the client has DRAIN_S to read the rest.

        A client that was closed because it does not read is closed at once.
        """
        if reason == "write_timeout":
            self.close()
        else:
            # While the pair is full, the pump cannot see that the data plane has closed it.
            self.start_deadline()

    def cause(self) -> tuple[str, str]:
        """Return why the client's connection ended: a close reason and its detail."""
        if self._channel.failure is not None:
            return "tls", str(self._channel.failure)
        if isinstance(self._channel, MessageChannel) and self._channel.violation:
            return "websocket", self._channel.violation
        if self._lost is not None:
            return kernel_cause(self._lost.errno or 0)
        return "eof", ""

    @property
    def has_round_trips(self) -> bool:
        """Whether its client's round-trip time counts: over TLS 1.2.

        A WebSocket does not count as TCP (PROTOCOL §14).
        """
        return bool(self.tls_version) and isinstance(self._channel, Tls12)

    def round_trip_us(self) -> int | None:
        """Return the client's round-trip time in microseconds, None if unknown."""
        return self._client.round_trip_us() if self.has_round_trips else None

    def bytes_moved(self) -> tuple[int, int] | None:
        """Return how many bytes the kernel has sent to the client and received from it.

        None unless it is TCP.
        """
        return self._client.bytes_moved()

    def _opened(self) -> None:
        channel = self._channel
        if isinstance(channel, MessageChannel) and not self._count_held(channel.held_bytes):
            self._client.send(channel.refuse_memory())

    def _may_read_client(self) -> bool:
        return not isinstance(self._channel, MessageChannel) or not self._channel.owes_replies

    def _count_held(self, n_bytes: int) -> bool:
        """Account for the bytes of an incomplete message.

        Return False when all bridges together hold too many, and this one is not small.
        """
        more = n_bytes - self._held_bytes
        self._held_bytes = n_bytes
        return not more or self._hold(more) or n_bytes <= READ_BYTES

    def _client_ended(self, error: OSError | None) -> None:
        self._lost = error
        self._input_is_over = error is None
        super()._client_ended(error)

    def _end(self) -> None:
        self._count_held(0)
        super()._end()

    def _close_other(self) -> None:
        channel = self._channel
        if not (self._input_is_over or channel.eof or channel.failure is not None):
            super()._close_other()
        elif self._other.on_bytes == self._from_other:
            _leave_to_plane(self._other, self._loop)

    def _closed(self) -> None:
        self._count_held(0)
        self._on_close(self)


def _leave_to_plane(ours: Stream, loop: asyncio.AbstractEventLoop) -> None:
    """Send what is left and the end of it, and close when the data plane does; discard its bytes.

    An early close could be an error for the data plane, which would discard what it has not read.
    """
    deadline = loop.call_later(REST_S, supervisor.guarded("bridge", ours.close))

    def on_end(error: OSError | None) -> None:
        deadline.cancel()
        ours.close()

    ours.on_bytes = _ignore
    ours.on_end = on_end
    ours.on_drained = ours.end_output
    if ours.flushed:
        ours.end_output()
    ours.resume()


def plane_pair() -> tuple[socket.socket, socket.socket]:
    """Return the ends of a socket pair, the second for the data plane.

    The kernel holds little that the plane has written.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BYTES)
    return ours, theirs


class Bridges:
    """All bridges of a relay."""

    def __init__(self, poller: Poller) -> None:
        """Start without bridges; `poller` watches their sockets."""
        self._poller = poller
        self._bridges: set[Bridge] = set()
        self._emptied = asyncio.Event()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._bridges)

    @property
    def tls_versions(self) -> Counter[str]:
        """The number of bridges by TLS version."""
        return Counter(bridge.tls_version for bridge in self._bridges)

    def round_trips_us(self) -> list[int]:
        """Return the round-trip times of the clients that have one, in microseconds."""
        return [found for bridge in self._bridges if (found := bridge.round_trip_us()) is not None]

    def bytes_moved(self) -> dict[int, tuple[int, int]]:
        """Return the bytes sent and received of clients over TCP, by session handle."""
        return {
            bridge.handle: moved
            for bridge in self._bridges
            if bridge.handle and (moved := bridge.bytes_moved())
        }

    def detach(
        self, outside: Stream, channel: Channel, tls_version: str
    ) -> tuple[int, Bridge | None]:
        """Give a stream away to the data plane: return the descriptor for it.

        That is the stream's own if the data plane can read it, else a new pair's, with the bridge.
        """
        if isinstance(channel, (Plain, RecordLayer)):
            return outside.detach(), None
        return self.join(outside, channel, tls_version)

    def join(self, outside: Stream, channel: Channel, tls_version: str = "") -> tuple[int, Bridge]:
        """Pump between a stream and a new socket pair; return the data plane's end and the bridge.

        tls_version is counted in `tls_versions`; "" without TLS, and for connections of mesh links.
        """
        ours, theirs = plane_pair()
        outside.limit_kernel(UNSENT_BYTES, NEAR_RECEIVE_BYTES, NEAR_US)
        bridge = Bridge(self._poller, outside, channel, ours, self._forget, self._hold, tls_version)
        self._bridges.add(bridge)
        return theirs.detach(), bridge

    def join_socket(self, outside: socket.socket, channel: Channel) -> tuple[int, Bridge]:
        """Do the same for a connected socket."""
        return self.join(Stream(self._poller, outside, _ignore, _ignore, _ignore), channel)

    def leave(self) -> None:
        """Send code 1001, "going away", in every later closing handshake."""
        for bridge in self._bridges:
            bridge.leave()

    async def close(self) -> None:
        """Wait up to DRAIN_S until the clients have closed.

        The data plane has ended the sessions before.
        """
        if self._bridges:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._emptied.wait()
        for bridge in list(self._bridges):
            bridge.close()

    def _hold(self, n_more: int) -> bool:
        self._held_bytes += n_more
        return n_more < 0 or self._held_bytes <= HELD_LIMIT_BYTES

    def _forget(self, bridge: Bridge) -> None:
        self._bridges.discard(bridge)
        if not self._bridges:
            self._emptied.set()


def _ignore(*_: object) -> None:
    """Do nothing; the bridge is about to set the real callbacks."""
