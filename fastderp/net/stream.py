"""Reads and writes frames and HTTP heads over any pair of asyncio streams.

Turns the exceptions of streams into ConnectionClosed and ConnectionLost. One task reads at a time;
any number of tasks write. Belongs to the event loop of its streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Protocol, TypeAlias

from fastderp.errors import ConnectionClosed, ConnectionLost, ProtocolError
from fastderp.net.delivery import READ_SIZE, Delivery, Reader, Receiver, Source
from fastderp.net.socket_stream import SocketStream
from fastderp.util.reasons import own_text
from fastderp.wire.protocol import HEADER, HEADER_SIZE

# limit of an orderly close; unsent data is dropped then
CLOSE_TIMEOUT_S = 1.0

_HEAD_END = b"\r\n\r\n"


class Writer(Protocol):
    """The part of asyncio.StreamWriter that a client needs."""

    def write(self, data: bytes, /) -> None:
        """Send, and buffer the data that the connection does not accept yet."""

    async def drain(self) -> None:
        """Wait until the buffer has room."""

    def close(self) -> None:
        """Close the connection when the buffered data has been sent."""

    async def wait_closed(self) -> None:
        """Wait for the end of `close`."""

    def get_extra_info(self, name: str, /) -> Any:
        """Return the information under `name`, such as "sockname"; None if unknown."""


class ReaderWriter(Reader, Writer, Protocol):
    """Both directions in one object."""


AnyStream: TypeAlias = "Stream | ReaderWriter | tuple[Reader, Writer]"


class Stream:
    """A Reader and a Writer that adds a buffer to a connection's reader."""

    __slots__ = ("_at", "_buffer", "_over", "_reader", "_source", "_writer")

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self._source: Source | None = None
        # _buffer[_at:] was received and is not read yet.
        self._buffer = bytearray()
        self._at = 0
        self._over = False

    @classmethod
    def of(cls, stream: AnyStream) -> Stream:
        """Wrap a (reader, writer) pair or an object with both sets of methods."""
        if isinstance(stream, Stream):
            return stream
        if isinstance(stream, tuple):
            return cls(*stream)
        return cls(stream, stream)

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, at least one, or b"" at the end of the stream."""
        if self._at == len(self._buffer):
            return await self._read(n)
        data = bytes(memoryview(self._buffer)[self._at : self._at + n])
        self._at += len(data)
        return data

    async def read_frame(self, limit: int, timeout_s: float) -> tuple[int, bytes]:
        """Return type and payload of the next frame.

        Raises ProtocolError for a payload above `limit` bytes, ConnectionClosed at the end of the
        stream, ConnectionLost when it ends inside a frame, breaks, or when the frame is not
        whole after `timeout_s` seconds.
        """
        if (taken := self._take_frame(limit)) is not None:
            return taken
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._fill("a frame")
                    if (taken := self._take_frame(limit)) is not None:
                        return taken
        except TimeoutError:
            raise ConnectionLost(f"nothing from the relay for {timeout_s:g} s") from None

    async def read_head(self, limit: int) -> bytes:
        """Return an HTTP head, including its blank line.

        Raises ProtocolError for a head above `limit` bytes, otherwise as `read_frame`.
        """
        while True:
            end = self._buffer.find(_HEAD_END, self._at)
            size = (end + len(_HEAD_END) if end >= 0 else len(self._buffer)) - self._at
            if size > limit:
                raise ProtocolError(f"HTTP head of more than {limit} bytes")
            if end >= 0:
                return await self.read(size)
            await self._fill("an HTTP head")

    def deliver_to(self, receiver: Receiver, /) -> None:
        """Call `receiver` with what has arrived and is not read yet, and with all that follows.

        Nothing may `read` from then on. The receiver gets a reader's own errors.
        """
        source = self._reader if isinstance(self._reader, Source) else Delivery(self._reader)
        self._source = source
        if unread := self.take_unread():
            receiver.received(unread)
        source.deliver_to(receiver)

    def pause_reading(self) -> None:
        """Stop reading. The receiver of `deliver_to` may get some more bytes."""
        if self._source is not None:
            self._source.pause_reading()

    def resume_reading(self) -> None:
        """Read again for the receiver of `deliver_to`."""
        if self._source is not None:
            self._source.resume_reading()

    def write(self, data: bytes, /) -> None:
        """Queue `data`; `drain` waits until most of it is sent. Raises ConnectionLost."""
        try:
            self._writer.write(data)
        except (OSError, RuntimeError) as error:
            raise ConnectionLost(f"writing failed: {own_text(error)}") from error

    async def drain(self) -> None:
        """Wait until there is room for more. Raises ConnectionLost when the connection broke."""
        try:
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ConnectionLost(f"writing failed: {own_text(error)}") from error

    def close(self) -> None:
        """Begin an orderly close, which still sends queued data. Delivery stops."""
        self._stop_delivery()
        self._writer.close()

    def abort(self) -> None:
        """Close now and discard queued data. Delivery stops."""
        self._stop_delivery()
        transport = getattr(self._writer, "transport", None)
        abort = getattr(transport, "abort", None) or getattr(self._writer, "abort", None)
        if abort is None:
            self._writer.close()
        else:
            # A closed asyncio transport has no loop to abort on.
            with contextlib.suppress(AttributeError):
                abort()

    async def wait_closed(self) -> None:
        """Wait for the end of `close`, up to CLOSE_TIMEOUT_S; then abort."""
        if self._over:
            # asyncio cannot wait again for a writer whose wait was interrupted.
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except OSError:
            # The peer has broken it, or (TimeoutError) does not read: the stream is closed.
            self.abort()
        except BaseException:
            # A cancelled wait leaves no connection behind.
            self.abort()
            raise
        finally:
            self._over = True

    def take_unread(self) -> bytes:
        """Remove and return the data that was read ahead."""
        data = bytes(memoryview(self._buffer)[self._at :])
        self._at = len(self._buffer)
        return data

    def detach(self) -> tuple[socket.socket, bytes]:
        """Hand the connection over: return its socket and the data that was read ahead.

        This ends the stream. Only for a dialled connection whose written bytes have all been sent, as a peer's answer
        proves. Raises ConnectionLost when the connection broke.
        """
        if not isinstance(self._writer, SocketStream):
            raise TypeError("only a dialled connection can be handed over")
        try:
            own, unread = self._writer.detach()
        except (OSError, RuntimeError) as error:
            raise ConnectionLost(f"the connection broke: {own_text(error)}") from error
        return own, self.take_unread() + unread

    def get_extra_info(self, name: str, /) -> Any:
        """Return the writer's information under `name`."""
        return self._writer.get_extra_info(name)

    def _stop_delivery(self) -> None:
        if isinstance(self._source, Delivery):
            self._source.stop()

    async def _read(self, n: int) -> bytes:
        try:
            return await self._reader.read(n)
        except OSError as error:
            raise ConnectionLost(f"reading failed: {own_text(error)}") from error

    async def _fill(self, wanted: str) -> None:
        """Read more data into the buffer."""
        del self._buffer[: self._at]
        self._at = 0
        data = await self._read(READ_SIZE)
        if data:
            self._buffer += data
        elif self._buffer:
            raise ConnectionLost(f"the connection ended inside {wanted}")
        else:
            raise ConnectionClosed("the connection was closed")

    def _take_frame(self, limit: int) -> tuple[int, bytes] | None:
        """Return the next frame if it is complete."""
        start = self._at + HEADER_SIZE
        if len(self._buffer) < start:
            return None
        frame_type, length = HEADER.unpack_from(self._buffer, self._at)
        if length > limit:
            raise ProtocolError(f"frame of type {frame_type:#04x} with {length} bytes")
        if len(self._buffer) < start + length:
            return None
        payload = bytes(memoryview(self._buffer)[start : start + length])
        self._at = start + length
        return frame_type, payload
