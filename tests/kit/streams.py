"""A pair of streams in memory with the methods of asyncio's streams."""

from __future__ import annotations

import asyncio
import struct

from fastderp.wire.keys import NodePublic
from tests.kit.peer import SEND, frame


class _Pipe:
    """Bytes in one direction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_closed = False
        self.error: Exception | None = None
        self._news = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.data += data
        self._news.set()

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True
        self._news.set()

    async def read(self, n: int) -> bytes:
        while not self.data and not self.is_closed:
            self._news.clear()
            await self._news.wait()
        if self.error is not None:
            raise self.error
        piece = bytes(self.data[:n])
        del self.data[:n]
        return piece

    async def readexactly(self, n: int) -> bytes:
        pieces = b""
        while len(pieces) < n:
            piece = await self.read(n - len(pieces))
            if not piece:
                raise asyncio.IncompleteReadError(pieces, n)
            pieces += piece
        return pieces


class StreamPair:
    """The relay's stream and the client at its other end."""

    def __init__(self) -> None:
        self.relay_reads = _Pipe()
        self.relay_writes = _Pipe()

    def write(self, data: bytes) -> None:
        """Send bytes to the relay."""
        self.relay_reads.write(data)

    def send_packet(self, to: NodePublic, data: bytes) -> None:
        """Send a SendPacket."""
        self.write(frame(SEND, to.raw + data))

    def end(self) -> None:
        """End the client's side of the stream."""
        self.relay_reads.close()

    def fail(self, error: Exception) -> None:
        """Make the relay's next read raise `error`."""
        self.relay_reads.error = error
        self.relay_reads.close()

    async def read_frame(self) -> tuple[int, bytes]:
        """Read a frame from the relay."""
        frame_type, length = struct.unpack(">BI", await self.relay_writes.readexactly(5))
        return frame_type, await self.relay_writes.readexactly(length)
