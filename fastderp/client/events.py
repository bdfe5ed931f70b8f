"""The events of an HTTPClient's connection (PROTOCOL §13).

Belongs to the client's event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Self, TypeAlias

from fastderp.errors import ConcurrencyError, DerpError
from fastderp.wire.keys import NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import Health, ServerRestarting

# Older events are dropped when a program does not read them.
LIMIT_EVENTS = 1000


class ConnectionState(Enum):
    """The state of an HTTPClient's connection. PROTOCOL §13."""

    IDLE = "not connected"  # the next call that needs a connection opens it
    WAITING = "waiting to connect"  # until the relay is dialled again
    CONNECTING = "connecting"  # from the name look-up until the relay accepts the login
    CONNECTED = "connected"
    CLOSED = "closed"  # final


@dataclass(frozen=True, slots=True)
class Connected:
    """A relay has accepted the login: from now on, peers can reach the client. PROTOCOL §3, §13.

    Args:
        generation: the number of the connection, from 1.
        server_public_key: the relay's key.
    """

    generation: int
    server_public_key: NodePublic


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection is over. PROTOCOL §13.

    Args:
        generation: the connection's number.
        reason: the error that calls raise: ConnectionClosed for an orderly end, ConnectionLost or
            ProtocolError for another.
    """

    generation: int
    reason: DerpError


@dataclass(frozen=True, slots=True)
class DialFailed:
    """An attempt to connect has failed, or the relay has refused the login. PROTOCOL §13.

    Args:
        reason: the error of the attempt.
    """

    reason: DerpError


ClientEvent: TypeAlias = (
    Connected | Disconnected | DialFailed | ServerInfo | Health | ServerRestarting
)
"""The events that `HTTPClient.events` yields.

ServerInfo has the relay's rate limit, Health a problem that it reports or the end of one.
PROTOCOL §4, §13.
"""


class EventStream:
    """Events in order, from the moment `HTTPClient.events` was called until the client is closed.

    PROTOCOL §13. Keeps up to 1,000 unread events and drops older ones. One task iterates at a time.
    """

    __slots__ = ("__weakref__", "_check_loop", "_events", "_is_over", "_waiter")

    def __init__(self, check_loop: Callable[[], None]) -> None:
        """Begin empty; callers use `HTTPClient.events`.

        `check_loop` raises WrongLoopError outside the client's event loop.
        """
        self._check_loop = check_loop
        self._events: deque[ClientEvent] = deque(maxlen=LIMIT_EVENTS)
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        """Iterate over events, waiting for new ones."""
        return self

    async def __anext__(self) -> ClientEvent:
        """Wait for the next event.

        Raises ConcurrencyError while another task waits, WrongLoopError in another event loop.
        """
        self._check_loop()
        if self._waiter is not None:
            raise ConcurrencyError("another task already waits for these events")
        while not self._events:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft()

    def put(self, event: ClientEvent) -> None:
        """Add an event. For the client."""
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        """End the iteration after the queued events. For the client."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
