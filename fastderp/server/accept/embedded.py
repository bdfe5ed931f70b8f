"""DERP over a caller's own streams: `Server.accept`. ARCHITECTURE §2.

Reads the login from them, and joins them to the session by a socket pair. Loop thread only.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Protocol

from fastderp.errors import ConnectionClosed, LoginError
from fastderp.server.accept.bridge import DRAIN_S, REST_S, plane_pair
from fastderp.server.accept.derp_login import ASK, READ, REFUSE, DerpLogin
from fastderp.server.accept.registrar import Registrar
from fastderp.server.net.stream import READ_BYTES, kernel_cause
from fastderp.util.shortage import shortage_of


class Reader(Protocol):
    """The reading half of a connection, such as an asyncio.StreamReader."""

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, b"" at the end."""


class Writer(Protocol):
    """The writing half of a connection, such as an asyncio.StreamWriter."""

    def write(self, data: bytes, /) -> None:
        """Send, and buffer the data that cannot be sent yet."""

    async def drain(self) -> None:
        """Wait until the buffer has room."""

    def close(self) -> None:
        """Close the connection."""


class EmbeddedSessions:
    """All sessions over a caller's own streams, from the start of their login."""

    def __init__(self, registrar: Registrar) -> None:
        """Log clients in through this registrar."""
        self._registrar = registrar
        self._serving: set[asyncio.Task[object]] = set()
        self._logins: set[asyncio.Timeout] = set()
        self._closed = False

    async def serve(
        self, reader: Reader, writer: Writer, remote: tuple[str, int], login_timeout_s: float
    ) -> None:
        """Serve one client until its session ends; close the streams in any case.

        Raises LoginError, TimeoutError or asyncio.IncompleteReadError when the login fails,
        ConnectionClosed when the relay is closed first.
        """
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer, remote, login_timeout_s)
        finally:
            self._serving.discard(task)
            await _hang_up(writer)

    async def close(self) -> None:
        """End every login; wait up to DRAIN_S for the streams of sessions that have ended."""
        self._closed = True
        now_s = asyncio.get_running_loop().time()
        for login in self._logins:
            if not login.expired():
                login.reschedule(now_s)
        others = self._serving - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=DRAIN_S)

    async def _serve(
        self, reader: Reader, writer: Writer, remote: tuple[str, int], login_timeout_s: float
    ) -> None:
        registrar = self._registrar
        registrar.connection_log.note_accept()
        login = DerpLogin(registrar.login_terms, remote[0], fast_start=True)
        place = registrar.addresses.place()
        try:
            if refusal := place.log_in(remote[0]):
                raise LoginError("address", refusal)
            await self._log_in(login, reader, writer, remote[0], login_timeout_s)
            ours, theirs = plane_pair()
        except BaseException as error:
            registrar.connection_log.note_refused("login", _reason(error), remote, str(error))
            place.leave()
            raise
        bridge = _StreamBridge(reader, writer, ours)
        registrar.promote(
            theirs.detach(),
            login.client,
            remote,
            first=login.take_output(),
            opened=login.rest,
            mesh=login.is_mesh_peer,
            bridge=bridge,
            address_group=place.give_away(),
        )
        await bridge.pump()

    async def _log_in(
        self, login: DerpLogin, reader: Reader, writer: Writer, ip: str, timeout_s: float
    ) -> None:
        """Run the steps of a login, within its time. Raises the errors of `serve`."""
        budget = asyncio.timeout(timeout_s)
        try:
            async with budget:
                self._logins.add(budget)
                await self._take_steps(login, reader, writer, ip)
        except TimeoutError:
            if not budget.expired():
                raise  # of the connection
            if self._closed:
                raise ConnectionClosed("the relay is closed") from None
            raise TimeoutError(f"no login within {timeout_s:g} s") from None
        finally:
            self._logins.discard(budget)

    async def _take_steps(self, login: DerpLogin, reader: Reader, writer: Writer, ip: str) -> None:
        step = login.step()
        while step is READ:
            if greeting := login.take_output():
                writer.write(greeting)
                await writer.drain()
            data = await reader.read(READ_BYTES)
            if not data:
                raise asyncio.IncompleteReadError(login.rest, None)
            login.feed(data)
            step = login.step()
        if step is ASK:
            step = login.judge(await self._registrar.refusal(login.client, ip))
        if step is REFUSE:
            raise LoginError(login.reason, login.detail)


def _reason(error: BaseException) -> str:
    """Return the counter label of a failed login."""
    if isinstance(error, LoginError):
        return error.reason
    if isinstance(error, ConnectionClosed | asyncio.CancelledError):
        return "shutdown"
    if isinstance(error, EOFError):
        return "end"
    if shortage_of(error):
        return "shortage"
    if isinstance(error, ssl.SSLError):
        return "tls"
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number:
        return kernel_cause(number)[0]
    return "timeout" if isinstance(error, TimeoutError) else "internal"


class _StreamBridge:
    """Pumps between a caller's streams and our end of a socket pair."""

    has_round_trips = False

    def __init__(self, reader: Reader, writer: Writer, ours: socket.socket) -> None:
        self.handle = 0
        self._reader = reader
        self._writer = writer
        self._ours = ours
        self._ended = asyncio.Event()
        self._lost: Exception | None = None

    def round_trip_us(self) -> int | None:
        return None

    def session_ended(self, reason: str) -> None:
        self._ended.set()

    def cause(self) -> tuple[str, str]:
        """Return why the streams ended: a close reason and its detail."""
        if self._lost is None:
            return "eof", ""
        if isinstance(self._lost, ssl.SSLError):
            return "tls", str(self._lost)
        return kernel_cause(getattr(self._lost, "errno", None) or 0)

    async def pump(self) -> None:
        """Pump until either side or the session ends.

        After the session the client has DRAIN_S to read the rest: a full socket pair hides the
        session's end. After the client's end the session has REST_S to relay its last frames.
        """
        works = (self._inwards(), self._outwards(), self._ended.wait())
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.is_set():
                await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED, timeout=DRAIN_S)
        finally:
            for task in tasks:
                task.cancel()
            ended = asyncio.gather(*tasks, return_exceptions=True)
            ended.add_done_callback(self._note_end)
            await asyncio.shield(ended)

    def _note_end(self, ended: asyncio.Future[Any]) -> None:
        """Note why the tasks ended, and close our end, which none of them uses any more."""
        errors = [result for result in ended.result() if isinstance(result, Exception)]
        self._lost = errors[0] if errors else None
        self._ours.close()

    async def _inwards(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await self._reader.read(READ_BYTES):
            await loop.sock_sendall(self._ours, data)
        self._ours.shutdown(socket.SHUT_WR)
        await asyncio.sleep(REST_S)

    async def _outwards(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._ours, READ_BYTES):
            self._writer.write(data)
            await self._writer.drain()


async def _hang_up(writer: Writer) -> None:
    """Close the connection; abort it when its peer does not read, since asyncio would wait."""
    writer.close()
    if isinstance(writer, asyncio.StreamWriter):
        try:
            async with asyncio.timeout(DRAIN_S):
                await writer.wait_closed()
        except TimeoutError:
            writer.transport.abort()
        except OSError:
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
