"""Opens the connection of an HTTPClient on demand, and again after a failure (PROTOCOL §13).

Belongs to the event loop that it is first used in.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakSet

from fastderp.client.arguments import wrong_loop_error
from fastderp.client.backoff import Backoff, RetrySchedule
from fastderp.client.client import Client
from fastderp.client.dialer import Dialer
from fastderp.client.events import (
    ClientEvent,
    Connected,
    ConnectionState,
    DialFailed,
    Disconnected,
    EventStream,
)
from fastderp.errors import (
    ConnectionClosed,
    ConnectionLost,
    DerpError,
    DialError,
    ProtocolError,
)
from fastderp.net.target import RegionTarget, UrlTarget
from fastderp.util.log_lines import logger
from fastderp.wire.keys import NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import Health, Message, ServerRestarting

# Limit from the name look-up to the login, and again for the relay's answer to the login.
CONNECT_TIMEOUT_S = 10.0

OVER = (ConnectionClosed, ProtocolError)
"""The errors that end a connection."""

_T = TypeVar("_T")

_log = logger("fastderp.client")


class Connector:
    """Connects, and with `reconnect` stays connected, until `close`."""

    def __init__(self, dialer: Dialer, backoff: Backoff, *, reconnect: bool) -> None:
        """Begin without a connection; a loop need not run yet."""
        self.target: UrlTarget | RegionTarget = dialer.target
        self.reconnect = reconnect
        self.state: ConnectionState = ConnectionState.IDLE
        self.is_closed: bool = False
        # A closed client stays until a call has raised its error; `reconnect` replaces it at once.
        self.client: Client | None = None
        self.generation: int = 0
        self.server_public_key: NodePublic | None = None
        # unread messages of earlier connections, with their generations
        self.unread: deque[tuple[Message, int]] = deque()
        # The requests to repeat on every new connection.
        self.preferred = False
        self.watching = False
        self._dialer = dialer
        self._backoff = backoff
        self._retry: RetrySchedule
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._connecting: asyncio.Task[Client] | None = None
        self._events: WeakSet[EventStream] = WeakSet()

    def events(self) -> EventStream:
        """Return an iterator over events from now on."""
        stream = EventStream(self._check_loop)
        if self.is_closed:
            stream.end()
        self._events.add(stream)
        return stream

    async def connect(self) -> None:
        """Connect unless there is a connection; return when the relay has accepted the login.

        Raises DialError that names the cause.
        """
        self.check_use()
        client = self.client
        if client is not None and client.is_over:
            self.forget(client)
            client = None
        client = client or await self._join(self._connect_once)
        try:
            await self._wait_accepted(client)
        except OVER as error:
            self.forget(client)
            if self.is_closed:
                raise
            raise DialError(f"{self.target}: {error}") from error

    async def _wait_accepted(self, client: Client) -> None:
        """Wait for the relay's answer to the login; without one in time, end the connection."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.wait_accepted()
        except TimeoutError:
            late = ConnectionLost(f"no answer to the login in {CONNECT_TIMEOUT_S:g} s")
            raise client.fail(late) from None

    async def close(self) -> None:
        """Close for good; no task is left. Safe to repeat."""
        if self._loop is not None:
            self._check_loop()
        self.is_closed = True
        self.state = ConnectionState.CLOSED
        self.unread.clear()
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
        try:
            if self.client is not None:
                await self.client.close()
            if connecting is not None:
                await asyncio.wait({connecting})
        finally:
            self.client = None
            for stream in self._events:
                stream.end()

    # Making a connection

    async def do(self, request: Callable[[Client], Awaitable[_T]]) -> _T:
        """Send a request on the connection; with `reconnect` repeat a failed one on the next.

        A failed request has sent nothing.
        """
        while True:
            client = await self.ready()
            try:
                return await self.guard(client, request(client))
            except OVER:
                if self.is_closed or not self.reconnect:
                    raise

    async def guard(self, client: Client, request: Awaitable[_T]) -> _T:
        """Await `request`; if it fails, forget the connection, so that the next call reconnects."""
        try:
            return await request
        except OVER:
            self.forget(client)
            raise

    def forget(self, client: Client) -> None:
        """Abort a connection; keep its unread messages."""
        if self.client is client:
            self.client = None
            unread = client.take_unread()
            self.unread.extend((message, self.generation) for message in unread)
        client.abort()

    def connected_client(self) -> Client:
        """Return the connection. Raises ConnectionClosed when there is none."""
        if self.client is None:
            raise ConnectionClosed("the client is closed" if self.is_closed else "not connected")
        return self.client

    async def ready(self) -> Client:
        """Return the connection; open it first if necessary.

        A connection that is over is returned, too, for its error.
        """
        while True:
            self.check_use()
            if self.client is not None:
                return self.client
            if not self.reconnect:
                return await self._join(self._connect_once)
            try:
                return await self._join(self._connect_until_done)
            except DialError:
                # This was an attempt of `connect`, which raises the error; this task continues.
                pass

    async def _join(self, connect: Callable[[], Awaitable[Client]]) -> Client:
        """Wait for the current attempt to connect; start one if necessary.

        Tasks share an attempt, which continues when one of them is cancelled.
        """
        if self._connecting is None or self._connecting.done():
            self._start(connect)
        connecting = self._connecting
        assert connecting is not None
        # `wait` raises CancelledError only when this task is cancelled.
        await asyncio.wait({connecting})
        if connecting.cancelled() and self.is_closed:
            raise ConnectionClosed("the client is closed")
        return connecting.result()

    def _start(self, connect: Callable[[], Awaitable[Client]]) -> None:
        async def attempt() -> Client:
            return await connect()

        self._connecting = asyncio.get_running_loop().create_task(attempt())
        self._connecting.add_done_callback(self._attempted)

    def _attempted(self, task: asyncio.Task[Client]) -> None:
        if self._connecting is task:
            self._connecting = None
        if not task.cancelled():
            # Mark the error as retrieved, in case all waiting tasks were cancelled.
            task.exception()

    async def _connect_until_done(self) -> Client:
        while True:
            try:
                return await self._connect_once()
            except (DialError, *OVER):
                # `_connect_once` has reported it to `events`. The loop's other tasks get a turn
                # even if an attempt fails at once and the backoff does not wait.
                await asyncio.sleep(0)

    async def _connect_once(self) -> Client:
        """Connect when the backoff allows it."""
        if (wait_s := self._retry.wait_s()) > 0:
            self.state = ConnectionState.WAITING
            await asyncio.sleep(wait_s)
        self.state = ConnectionState.CONNECTING
        try:
            client = await self._dialer.dial(CONNECT_TIMEOUT_S)
        except BaseException as error:
            self.state = ConnectionState.CLOSED if self.is_closed else ConnectionState.IDLE
            if isinstance(error, DerpError):
                self._retry.failed(was_connected=False)
                self._report_failure(error)
            raise
        self.client = client
        self.generation += 1
        self.server_public_key = client.server_public_key
        client.observe(self._on_message, self._on_end)
        # Continue without the relay's answer to the login.
        await self.guard(client, self._say_again(client))
        return client

    async def _say_again(self, client: Client) -> None:
        """Repeat on a new connection the requests of the previous ones."""
        if self.preferred:
            await client.note_preferred(True)
        if self.watching:
            await client.watch_connection_changes()

    # Events of the connection

    def _on_message(self, message: Message) -> None:
        if isinstance(message, ServerInfo):
            if self.state is ConnectionState.CONNECTING:
                self.state = ConnectionState.CONNECTED
                self._retry.connected()
                assert self.server_public_key is not None
                _log.info("%s: connected", self._dialer)
                self._tell(Connected(self.generation, self.server_public_key))
        elif isinstance(message, ServerRestarting):
            self._retry.restarting(message)
        elif not isinstance(message, Health):
            return
        self._tell(message)

    def _on_end(self, client: Client, error: DerpError) -> None:
        if client is not self.client:
            return
        was_connected = client.server_info is not None
        self._retry.failed(was_connected=was_connected)
        if was_connected:
            _log.info("%s: the connection is over: %s", self._dialer, error)
            self._tell(Disconnected(self.generation, error))
        else:
            self._report_failure(error)
        if self.is_closed:
            return
        self.state = ConnectionState.IDLE
        if self.reconnect:
            self.forget(client)
            if self._connecting is None or self._connecting.done():
                self._start(self._connect_until_done)

    def _report_failure(self, error: DerpError) -> None:
        _log.info("%s: connecting failed: %s", self._dialer, error)
        self._tell(DialFailed(error))

    def _tell(self, event: ClientEvent) -> None:
        for stream in self._events:
            stream.put(event)

    # Use

    def check_use(self) -> None:
        """Raise an error for wrong use; remember the loop of the first use."""
        self._check_loop()
        if self.is_closed:
            raise ConnectionClosed("the client is closed")

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._pid = loop, os.getpid()
            self._retry = RetrySchedule(self._backoff, loop.time)
        elif loop is not self._loop:
            raise wrong_loop_error(self._pid)
