"""Joins what the data plane cannot read itself (TLS 1.2, WebSocket, somebody else's streams) to a socket pair that it can. ARCHITECTURE §2.

The data plane owns one end, the loop thread pumps the other; who cannot take more makes the other side wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

from websockets.frames import CloseCode

from fastderp.server.accept.stream import Poller, Stream
from fastderp.server.accept.websocket import WebSocket, leave
from fastderp.tls.channel import Channel, Tls12, close_notify
from fastderp.tls.errors import TlsError

# How long a client may take to read the rest of what was sent before the session ended, and to close.
FAREWELL_S = 2.0
# What the messages that clients have begun and not finished may take together; each is limited besides.
HELD_LIMIT_BYTES = 64 << 20

# The data plane lets the kernel hold 128 KiB that a client has not taken, in one socket. A bridge shares them between two: beyond the
# first, the sealed bytes; before it, what the plane has written. More would only be stale packets.
UNSENT_BYTES = 64 << 10
PAIR_BYTES = 32 << 10  # the kernel doubles it, for its own overhead
# Unread bytes the kernel may hold of a client that is near, as the data plane has it.
NEAR_RECEIVE_BYTES = 212_992
NEAR_US = 2000


class Bridge:
    """Two streams, each fed by the other through the channel; ends itself when either side does."""

    __slots__ = (
        "_channel",
        "_deadline",
        "_held_bytes",
        "_hold",
        "_inside",
        "_on_close",
        "_outside",
        "_said_goodbye",
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

        hold: counts bytes that all bridges together hold of incomplete messages; False when they are too many.
        """
        self._hold = hold
        self._held_bytes = 0
        self.tls_version = tls_version
        # The session at the other end, once there is one.
        self.handle = 0
        self._channel = channel
        self._on_close = on_close
        self._deadline: asyncio.TimerHandle | None = None
        self._said_goodbye = False
        self._outside = outside
        self._inside = Stream(
            poller, inside, self._from_plane, self._plane_ended, self._plane_drained
        )
        outside.on_bytes = self._from_client
        outside.on_end = self._client_ended
        outside.on_drained = self._client_drained
        self._inside.resume()
        outside.resume()
        if channel.eof:
            self._end()

    def leave(self) -> None:
        """Have the goodbye say that it is the relay which goes."""
        leave(self._channel)

    def session_ended(self, reason: str) -> None:
        """Note that the data plane has closed its end: the client gets FAREWELL_S to read the rest.

        A client that was closed because it reads nothing has had its time and is closed at once.
        """
        if reason == "write_timeout":
            self.close()
        else:
            self._start_farewell()

    def _start_farewell(self) -> None:
        if self._deadline is None and not self._outside.closed:
            self._deadline = asyncio.get_running_loop().call_later(FAREWELL_S, self.close)

    def close(self) -> None:
        """Close both sides; what is on its way is lost."""
        if self._outside.closed:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._inside.close()
        self._outside.close()
        self._count_held(0)
        self._on_close(self)

    @property
    def has_round_trips(self) -> bool:
        """Whether its client's round-trip time is looked at: over TLS 1.2. A WebSocket counts as no TCP at all (PROTOCOL §14)."""
        return bool(self.tls_version) and isinstance(self._channel, Tls12)

    def round_trip_us(self) -> int | None:
        """Return the client's round-trip time in microseconds, None without one."""
        return self._outside.round_trip_us() if self.has_round_trips else None

    def bytes_moved(self) -> tuple[int, int] | None:
        """Return how many bytes went to the client and came from it, as the kernel counts them; None when they are not over TCP."""
        return self._outside.bytes_moved()

    def _from_client(self, data: bytes) -> None:
        try:
            plain = self._channel.open(data)
        except TlsError:
            self.close()
            return
        if isinstance(self._channel, WebSocket) and not self._count_held(self._channel.held_bytes):
            self._outside.send(
                self._channel.fail(CloseCode.TRY_AGAIN_LATER, "no memory left for a long message")
            )
        if not self._inside.send(plain):
            self._outside.pause()
        elif self._channel.eof:
            self._end()

    def _count_held(self, n_bytes: int) -> bool:
        """Note how much is held of an incomplete message; False when that is too much for the relay."""
        more = n_bytes - self._held_bytes
        self._held_bytes = n_bytes
        return not more or self._hold(more)

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
        if self._said_goodbye:
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
        self._said_goodbye = True
        self._count_held(0)
        self._start_farewell()
        self._outside.on_bytes = _ignore
        self._outside.resume()
        if self._outside.send(close_notify(self._channel)):
            self._outside.end_output()


class Bridges:
    """Every bridge of a relay."""

    def __init__(self, poller: Poller) -> None:
        """Begin with none; sockets are watched by `poller`."""
        self._poller = poller
        self._bridges: set[Bridge] = set()
        self._emptied = asyncio.Event()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._bridges)

    @property
    def tls_versions(self) -> Counter[str]:
        """How many bridges there are by the TLS version they were joined with."""
        return Counter(bridge.tls_version for bridge in self._bridges)

    def round_trips_us(self) -> list[int]:
        """Return the round-trip times of the clients that have one, in microseconds."""
        return [found for bridge in self._bridges if (found := bridge.round_trip_us()) is not None]

    def bytes_moved(self) -> dict[int, tuple[int, int]]:
        """Return the bytes sent and received of clients over TCP by the handles of their sessions."""
        return {
            bridge.handle: moved
            for bridge in self._bridges
            if bridge.handle and (moved := bridge.bytes_moved())
        }

    def join(self, outside: Stream, channel: Channel, tls_version: str = "") -> tuple[int, Bridge]:
        """Start pumping between a stream and a new socket pair; return the data plane's end, and what wants to hear of the session's.

        tls_version is what counts as such in `tls_versions`; "" for no TLS, or for none of a client.
        """
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BYTES)
        outside.limit_kernel(UNSENT_BYTES, NEAR_RECEIVE_BYTES, NEAR_US)
        bridge = Bridge(self._poller, outside, channel, ours, self._forget, self._hold, tls_version)
        self._bridges.add(bridge)
        return theirs.detach(), bridge

    def join_socket(self, outside: socket.socket, channel: Channel) -> int:
        """Do the same for a connected socket; its TCP_USER_TIMEOUT ends it when nobody is told."""
        return self.join(Stream(self._poller, outside, _ignore, _ignore, _ignore), channel)[0]

    def leave(self) -> None:
        """Have every goodbye from now on say that it is the relay which goes."""
        for bridge in self._bridges:
            bridge.leave()

    async def close(self) -> None:
        """Wait until the clients have taken the goodbye, not longer than FAREWELL_S; the data plane has ended the sessions before."""
        if self._bridges:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
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
    """Take what nobody wants: input after the end, callbacks that the bridge has not set yet."""
