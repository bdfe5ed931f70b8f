"""A TCP connection that is a Reader and a Writer, for many packets per read.

The copies and allocations of asyncio's own streams cost a client more than the system call of a
read: in this module every connection of a thread reads into one buffer, which a receiver gets
directly and `read` copies once. Works the same on uvloop and asyncio. Belongs to its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections import deque
from typing import Any, cast

from fastderp.net.connect import connect_tcp
from fastderp.net.delivery import Receiver
from fastderp.util.net import is_address

# Maximum of one read: below the size for which malloc makes a system call each time, above 40
# packets of 1,400 bytes.
READ_BYTES = 64 << 10
# Limit of received bytes that the reader has not taken, at which reading stops. The read that
# reaches the limit may exceed it.
LIMIT_BYTES = 128 << 10

_of_thread = threading.local()


def _read_buffer() -> memoryview:
    """Return the buffer that all connections of this thread read into.

    Each read is copied out before the next begins.
    """
    buffer: memoryview | None = getattr(_of_thread, "buffer", None)
    if buffer is None:
        buffer = _of_thread.buffer = memoryview(bytearray(READ_BYTES))
    return buffer


class SocketStream(asyncio.BufferedProtocol):
    """A connection made by `open_socket_stream`.

    One task reads at a time, until `deliver_to` gives what arrives to a receiver; any number write.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Used by `open_socket_stream`."""
        self._loop = loop
        self._transport: asyncio.Transport
        self._buffer = _read_buffer()
        # received chunks that are not read yet
        self._chunks: list[bytes] = []
        self._n_bytes = 0
        self._at_end = False
        self._error: Exception | None = None
        self._is_reading = True
        self._reader: asyncio.Future[None] | None = None
        self._receiver: Receiver | None = None
        # whether the transport's buffer is full, and the tasks that wait until it is not
        self._is_full = False
        self._writers: deque[asyncio.Future[None]] = deque()
        self._closed: asyncio.Future[None] = loop.create_future()

    @property
    def transport(self) -> asyncio.Transport:
        """The transport underneath."""
        return self._transport

    # Reading

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, at least one, or b"" at the end.

        Raises the OSError that broke the connection.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._at_end:
                return b""
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._take_chunks()
        if len(data) > n:
            self._chunks.append(data[n:])
            self._n_bytes = len(data) - n
            data = data[:n]
        if self._n_bytes < LIMIT_BYTES:
            self.resume_reading()
        return data

    def deliver_to(self, receiver: Receiver, /) -> None:
        """Call `receiver` with what has arrived and is not read yet, and with all that follows."""
        self._receiver = receiver
        self.resume_reading()
        if unread := self._take_chunks():
            receiver.received(unread)
        if self._at_end:
            receiver.ended(self._error)

    def pause_reading(self) -> None:
        """Stop reading. A read that has begun may be delivered."""
        if self._is_reading and not self._at_end:
            self._is_reading = False
            with contextlib.suppress(RuntimeError):  # The transport is closing.
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, if paused."""
        if not self._is_reading and not self._at_end:
            self._is_reading = True
            with contextlib.suppress(RuntimeError):  # The transport is closing.
                self._transport.resume_reading()

    def _take_chunks(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._n_bytes = 0
        return data

    # Writing

    def write(self, data: bytes, /) -> None:
        """Send, and buffer the data that the socket does not accept yet."""
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the buffer has room. Raises the OSError that broke the connection."""
        if self._error is not None:
            raise self._error
        if self._closed.done():
            raise ConnectionResetError("the connection is over")
        if self._is_full:
            room = self._loop.create_future()
            self._writers.append(room)
            await room

    def close(self) -> None:
        """Close the connection once the buffered bytes are written."""
        self._transport.close()

    def abort(self) -> None:
        """Close now and discard buffered bytes."""
        self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait for the end of `close`."""
        await asyncio.shield(self._closed)

    def get_extra_info(self, name: str, /) -> Any:
        """Return the transport's information under `name`."""
        return self._transport.get_extra_info(name)

    def detach(self) -> tuple[socket.socket, bytes]:
        """Detach from the connection; return its socket and the unread bytes.

        Call it when everything written has been sent; it ends this stream. Raises OSError or
        RuntimeError when the connection broke.
        """
        self._transport.pause_reading()
        own = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
        unread = self._take_chunks()
        self._transport.abort()
        return own, unread

    # Callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._receiver is not None:
            self._receiver.received(self._buffer[:nbytes])
            return
        self._chunks.append(bytes(self._buffer[:nbytes]))
        self._n_bytes += nbytes
        if self._n_bytes >= LIMIT_BYTES:
            self.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        self._end_reading(None)
        return True  # The stream may still send its queue.

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake_writers(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc
        self._end_reading(exc)
        self._wake_writers(exc or ConnectionResetError("the connection is over"))
        if not self._closed.done():
            self._closed.set_result(None)

    def _end_reading(self, error: Exception | None) -> None:
        was_at_end, self._at_end = self._at_end, True
        self._wake_reader()
        if self._receiver is not None and not was_at_end:
            self._receiver.ended(error)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writers(self, error: Exception | None) -> None:
        while self._writers:
            room = self._writers.popleft()
            if not room.done():
                if error is None:
                    room.set_result(None)
                else:
                    room.set_exception(error)


async def open_socket_stream(
    host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
) -> SocketStream:
    """Connect to a host over an address family, as `connect_tcp` does, and raise its errors."""
    loop = asyncio.get_running_loop()
    if is_address(host):
        _, stream = await loop.create_connection(
            lambda: SocketStream(loop), host, port, family=family
        )
        return stream
    sock = await connect_tcp(host, port, family)
    try:
        _, stream = await loop.create_connection(lambda: SocketStream(loop), sock=sock)
    except BaseException:
        sock.close()
        raise
    return stream
