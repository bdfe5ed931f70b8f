"""Non-blocking stream sockets on the event loop, for connections outside the data plane.

It replaces asyncio transports because of the hand-over to the data plane: no byte is read ahead or
buffered unseen, and `detach` returns the descriptor. Works the same on uvloop and asyncio. Loop
thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

from fastderp.server.observe.supervisor import supervisor

# A login needs a few hundred bytes; a bridged TLS 1.2 connection moves whole records.
READ_BYTES = 16 * 1024
EVENTS_PER_TURN = 64
# Limit per iteration of the loop: STUN, the data plane's events and new connections are served
# between two iterations.
SLICE_S = 0.004
# This many sockets ready at once count as a storm.
BUSY_EVENTS = 4

# Linux's number; Python's socket module defines it from 3.12 on.
TCP_NOTSENT_LOWAT = 25

# Offsets of tcpi_rtt, tcpi_bytes_received and tcpi_bytes_sent in Linux's struct tcp_info.
_RTT_AT = 68
_RECEIVED_AT = 128
_SENT_AT = 200

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT


class Poller:
    """Notifies streams that their sockets are ready, with an epoll that the loop watches.

    `is_busy` is whether many were ready at the last poll. The loop's `add_reader` is not used for
    streams: uvloop (libuv) stops reporting a descriptor at the first EPOLLERR, with the error and
    the data before it unread.
    """

    __slots__ = ("_epoll", "_loop", "_ready", "_streams", "is_busy")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch through `loop` until `close`."""
        self._loop = loop
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        # ready at the last poll, streams not yet notified
        self._ready: deque[tuple[int, int]] = deque()
        self.is_busy: bool = False
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._streams.clear()

    def watch(self, descriptor: int, stream: Stream, events: int) -> None:
        """Notify the stream of these events from now on; 0 stops that."""
        known = descriptor in self._streams
        if not events:
            # epoll reports errors of a socket even without requested events, repeatedly.
            if known:
                del self._streams[descriptor]
                self._epoll.unregister(descriptor)
        elif known:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._streams[descriptor] = stream

    def _dispatch(self) -> None:
        """Notify ready streams, for up to SLICE_S.

        The rest follows in the next iteration.
        """
        ready = self._ready
        if not ready:
            found = self._epoll.poll(0, EVENTS_PER_TURN)
            self.is_busy = len(found) >= BUSY_EVENTS
            ready.extend(found)
        deadline_s = time.monotonic() + SLICE_S
        while ready:
            descriptor, events = ready.popleft()
            # An earlier event may have closed the stream; a new stream with the same descriptor
            # finds nothing to read.
            stream = self._streams.get(descriptor)
            if stream is not None:
                # Connections have their own guard; this one is for bridges and tunnels.
                if not supervisor.guard("stream", stream.ready, events):
                    supervisor.guard("stream", stream.on_end, OSError(errno.EIO, "internal error"))
                if time.monotonic() > deadline_s:
                    break


class Stream:
    """Calls back with received bytes; sends as much as the socket accepts and keeps the rest.

    Calls `on_bytes(data)` for input, `on_end(error)` once, with None at the end of input, and
    `on_drained()` when the kept output is sent; calls nothing after `close` or `detach`.
    """

    __slots__ = (
        "_events",
        "_poller",
        "_sock",
        "_unsent",
        "on_bytes",
        "on_drained",
        "on_end",
        "read_bytes",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        on_bytes: Callable[[bytes], None],
        on_end: Callable[[OSError | None], None],
        on_drained: Callable[[], None],
    ) -> None:
        """Take over `sock`, connected; reading begins with `resume`."""
        sock.setblocking(False)
        self._poller = poller
        self._sock = sock
        self._unsent = bytearray()
        self._events = 0
        self.on_bytes: Callable[[bytes], None] = on_bytes
        self.on_end: Callable[[OSError | None], None] = on_end
        self.on_drained: Callable[[], None] = on_drained
        # Maximum of bytes per read; a connection may lower it to shorten its share of an iteration.
        self.read_bytes: int = READ_BYTES

    @property
    def closed(self) -> bool:
        """Whether the socket is closed or detached."""
        return self._sock.fileno() < 0

    @property
    def n_unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""
        return len(self._unsent)

    @property
    def local_ip(self) -> str:
        """The address that the peer has connected to; "" when the socket is closed."""
        try:
            return str(self._sock.getsockname()[0]).partition("%")[0]
        except OSError:
            return ""

    @property
    def flushed(self) -> bool:
        """Whether everything sent has reached the kernel."""
        return not self._unsent

    def round_trip_us(self) -> int | None:
        """Return the kernel's smoothed round-trip time in microseconds.

        Returns None unless it is an open TCP socket.
        """
        return self._tcp_info(_RTT_AT, 4)

    def bytes_moved(self) -> tuple[int, int] | None:
        """Return how many bytes the kernel has sent and received.

        Returns None unless it is an open TCP socket.
        """
        sent, received = self._tcp_info(_SENT_AT, 8), self._tcp_info(_RECEIVED_AT, 8)
        return None if sent is None or received is None else (sent, received)

    def _tcp_info(self, at: int, n_bytes: int) -> int | None:
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, at + n_bytes)
        except OSError:
            return None
        return int.from_bytes(info[at:], sys.byteorder) if len(info) == at + n_bytes else None

    def limit_kernel(self, unsent_bytes: int, near_receive_bytes: int, near_us: int) -> None:
        """Bound the kernel's queues: unsent output, and unread input of peers within near_us.

        A more distant peer needs the receive buffer that the kernel chooses. Does nothing unless
        the socket is TCP.
        """
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, unsent_bytes)
            if (self.round_trip_us() or 0) <= near_us:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, near_receive_bytes)

    def resume(self) -> None:
        """Read from now on."""
        self._watch(self._events | _IN)

    def pause(self) -> None:
        """Leave input in the kernel until `resume`."""
        self._watch(self._events & ~_IN)

    def send(self, data: bytes) -> bool:
        """Send; return whether the socket took everything, otherwise `on_drained` follows.

        The next read reports an error.
        """
        if not data or self.closed:
            return self.flushed
        if self._unsent:
            self._unsent += data
            return False
        n_sent = self._send_now(data)
        if n_sent < len(data):
            self._unsent += memoryview(data)[n_sent:]
            self._watch(self._events | _OUT)
        return self.flushed

    def end_output(self) -> None:
        """Send the end of the stream to the peer; call when flushed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def detach(self) -> int:
        """Give up the descriptor and return it; call when flushed. Unread input stays in the
        kernel.
        """
        self._watch(0)
        self._forget()
        return self._sock.detach()

    def close(self) -> None:
        """Close the socket and discard unsent bytes."""
        self._watch(0)
        self._forget()
        self._sock.close()

    def ready(self, events: int) -> None:
        """Handle epoll's events. The next read or write reports an error or the end."""
        if self._events & _OUT and events & ~_IN:
            self._write()
        if self._events & _IN and events & ~_OUT:
            self._read()

    def _watch(self, events: int) -> None:
        if events != self._events and not self.closed:
            self._events = events
            self._poller.watch(self._sock.fileno(), self, events)

    def _forget(self) -> None:
        """Drop the callbacks, and with them the cycle through their owner."""
        self.on_bytes = self.on_end = self.on_drained = _nothing

    def _read(self) -> None:
        try:
            data = self._sock.recv(self.read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.pause()
            self.on_end(error)
            return
        if data:
            self.on_bytes(data)
        else:
            self.pause()
            self.on_end(None)

    def _write(self) -> None:
        del self._unsent[: self._send_now(self._unsent)]
        if not self._unsent:
            self._watch(self._events & ~_OUT)
            self.on_drained()

    def _send_now(self, data: bytes | bytearray) -> int:
        """Return the number of bytes accepted; all if it is broken: the next read reports that."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return len(data)


def _nothing(*_: object) -> None:
    """Replace a callback after `close` or `detach`."""
