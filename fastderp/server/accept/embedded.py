"""DERP over streams of a caller's own: the login read from them, the session joined to them by a socket pair. DESIGN §2.

What `Server.accept` does. Loop thread only.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from fastderp.errors import ConnectionClosed, LoginError
from fastderp.server.accept.bridge import FAREWELL_S
from fastderp.server.accept.registrar import Entrance
from fastderp.server.accept.stream import READ_BYTES
from fastderp.wire.login import ClientLogin, check_client_info_header
from fastderp.wire.protocol import HEADER, HEADER_SIZE


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


class Conversations:
    """Every conversation over streams."""

    def __init__(self, entrance: Entrance) -> None:
        """Log clients in through this entrance."""
        self._entrance = entrance
        self._serving: set[asyncio.Task[object]] = set()
        self._logins: set[asyncio.Timeout] = set()
        self._closed = False

    async def serve(
        self, reader: Reader, writer: Writer, remote: tuple[str, int], login_timeout_s: float
    ) -> None:
        """Serve one conversation until it ends; its streams are closed then, whatever happens.

        Raises LoginError, TimeoutError or asyncio.IncompleteReadError when there is no login, ConnectionClosed when the relay is closed
        before.
        """
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._converse(reader, writer, remote, login_timeout_s)
        finally:
            self._serving.discard(task)
            await _hang_up(writer)

    async def close(self) -> None:
        """End every login; wait, not long, for the conversations whose sessions have ended."""
        self._closed = True
        now_s = asyncio.get_running_loop().time()
        for login in self._logins:
            if not login.expired():
                login.reschedule(now_s)
        others = self._serving - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=FAREWELL_S)

    async def _converse(
        self, reader: Reader, writer: Writer, remote: tuple[str, int], login_timeout_s: float
    ) -> None:
        entrance = self._entrance
        entrance.journal.note_accept()
        try:
            login, mesh = await self._log_in(reader, writer, remote[0], login_timeout_s)
        except BaseException as error:
            entrance.journal.note_refused("login", _reason(error), remote, str(error))
            raise
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        ended = asyncio.Event()
        first = entrance.server_info(login, mesh)
        entrance.promote(theirs.detach(), login, remote, first=first, mesh=mesh, on_end=ended.set)
        await _pump(reader, writer, ours, ended)

    async def _log_in(
        self, reader: Reader, writer: Writer, ip: str, timeout_s: float
    ) -> tuple[ClientLogin, bool]:
        """Return who has logged in, and whether it is a mesh peer."""
        budget = asyncio.timeout(timeout_s)
        try:
            async with budget:
                self._logins.add(budget)
                writer.write(self._entrance.greeting(fast_start=True))
                await writer.drain()
                login = await self._read_client_info(reader)
                mesh = self._entrance.is_mesh_peer(login)
                refusal = "" if mesh else await self._entrance.refusal(login, ip)
        except TimeoutError:
            if self._closed:
                raise ConnectionClosed("the relay is closed") from None
            raise TimeoutError(f"no login within {timeout_s:g} s") from None
        finally:
            self._logins.discard(budget)
        if refusal:
            raise LoginError("denied", refusal)
        return login, mesh

    async def _read_client_info(self, reader: Reader) -> ClientLogin:
        frame_type, length = HEADER.unpack(await reader.readexactly(HEADER_SIZE))
        check_client_info_header(frame_type, length)
        return self._entrance.open_client_info(await reader.readexactly(length))


def _reason(error: BaseException) -> str:
    """Return what a failed login counts as."""
    if isinstance(error, LoginError):
        return error.reason
    if isinstance(error, ConnectionClosed | asyncio.CancelledError):
        return "shutdown"
    return "timeout" if isinstance(error, TimeoutError) else "end"


async def _pump(reader: Reader, writer: Writer, ours: socket.socket, ended: asyncio.Event) -> None:
    """Pump between a pair of streams and our end of a socket pair until either side ends, or the session has ended.

    The client gets FAREWELL_S then for what it has not read; one that reads nothing would never let us see that end.
    """
    loop = asyncio.get_running_loop()

    async def inwards() -> None:
        while data := await reader.read(READ_BYTES):
            await loop.sock_sendall(ours, data)

    async def outwards() -> None:
        while data := await loop.sock_recv(ours, READ_BYTES):
            writer.write(data)
            await writer.drain()

    tasks = [asyncio.ensure_future(work) for work in (inwards(), outwards(), ended.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if ended.is_set():
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED, timeout=FAREWELL_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ours.close()


async def _hang_up(writer: Writer) -> None:
    """Close the connection, also one whose peer takes nothing more: asyncio would keep it, and what it was to send, for ever."""
    writer.close()
    if isinstance(writer, asyncio.StreamWriter):
        try:
            async with asyncio.timeout(FAREWELL_S):
                await writer.wait_closed()
        except TimeoutError:
            writer.transport.abort()
        except OSError:
            pass
