"""A non-blocking stream socket on the event loop, for the time before a connection belongs to the data plane.

Thinner than an asyncio transport, for the hand-over's sake: what was written and what was read is known exactly at every moment,
and `detach` gives the descriptor away whole. Works the same on uvloop and asyncio. Loop thread only.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# A login needs a few hundred bytes; a bridged TLS 1.2 connection moves whole records.
READ_BYTES = 16 * 1024


class Stream:
    """Calls back with what arrives, sends at once what the socket takes and keeps the rest.

    `on_bytes(data)` for input, `on_end(error)` once, with None at the end of input, `on_drained()` when kept output has gone. After
    `close` or `detach` nothing is called any more.
    """

    __slots__ = ("_loop", "_sock", "_unsent", "_reading", "on_bytes", "on_end", "on_drained")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_bytes: Callable[[bytes], None],
        on_end: Callable[[OSError | None], None],
        on_drained: Callable[[], None],
    ) -> None:
        """Take over `sock`, connected; reading begins with `resume`."""
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._unsent = bytearray()
        self._reading = False
        self.on_bytes = on_bytes
        self.on_end = on_end
        self.on_drained = on_drained

    @property
    def closed(self) -> bool:
        """Whether the socket is closed or given away."""
        return self._sock.fileno() < 0

    @property
    def flushed(self) -> bool:
        """Whether everything sent has reached the kernel."""
        return not self._unsent

    @property
    def unsent_bytes(self) -> int:
        """How much waits for the socket to take it."""
        return len(self._unsent)

    def resume(self) -> None:
        """Read from now on."""
        if not self._reading and not self.closed:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def pause(self) -> None:
        """Leave input in the kernel until `resume`."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def send(self, data: bytes) -> bool:
        """Send; return whether the socket took everything, otherwise `on_drained` follows. An error shows when reading."""
        if not data or self.closed:
            return self.flushed
        if self._unsent:
            self._unsent += data
            return False
        n_sent = self._send_now(data)
        if n_sent < len(data):
            self._unsent += memoryview(data)[n_sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)
        return self.flushed

    def end_output(self) -> None:
        """Tell the peer that nothing more comes; call when flushed."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def detach(self) -> int:
        """Give the descriptor away; call when flushed. Unread input is still in the kernel."""
        self.pause()
        self._forget()
        return self._sock.detach()

    def close(self) -> None:
        """Close the socket; what is unsent is lost."""
        if self.closed:
            return
        self.pause()
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self._sock.fileno())
        self._forget()
        self._sock.close()

    def _forget(self) -> None:
        """Drop the callbacks, and with them the cycle through their owner."""
        self.on_bytes = self.on_end = self.on_drained = _nothing

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
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

    def _writable(self) -> None:
        del self._unsent[: self._send_now(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())
            self.on_drained()

    def _send_now(self, data: bytes | bytearray) -> int:
        """Return how much the socket took. A broken socket swallows everything: reading tells."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return len(data)


def _nothing(*_: object) -> None:
    """Take the place of a callback that is not wanted any more."""
