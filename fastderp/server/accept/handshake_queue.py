"""The queue of clients whose ClientHello is complete, until there is memory for the handshake.

ARCHITECTURE §2, RELIABILITY F31. Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastderp.server.accept.login_memory import LoginMemory
from fastderp.server.observe.supervisor import supervisor

# Maximum number of handshakes that begin in one iteration of the loop.
STARTS_PER_ITERATION = 8
# While others wait, a slow handshake is ended after PATIENCE times the average duration, but not
# before PATIENCE_S and not after MAX_PATIENCE_S.
PATIENCE_S = 2.0
PATIENCE = 4
MAX_PATIENCE_S = 10.0
# weight of the latest handshake in the average duration
WEIGHT = 1 / 16
# interval between searches for such handshakes
LOOK_S = 0.25


class Ticket:
    """One handshake that is queued or running.

    Args:
        start: begins the handshake; called once, on the loop.
        give_way: ends a running handshake so that others can start.
    """

    __slots__ = ("give_way", "start", "started_s")

    def __init__(self, start: Callable[[], None], give_way: Callable[[], None]) -> None:
        self.start: Callable[[], None] = start
        self.give_way: Callable[[], None] = give_way
        self.started_s: float = 0.0


class HandshakeQueue:
    """Starts handshakes in order of arrival, at once while there is memory.

    Args:
        memory: the budget for handshakes. The queue continues when memory is freed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, memory: LoginMemory) -> None:
        self._loop = loop
        self._memory = memory
        self._waiting: dict[Ticket, None] = {}
        self._running: dict[Ticket, None] = {}
        self._usual_s = 0.0
        self._pumping: asyncio.Handle | None = None
        self._looking: asyncio.TimerHandle | None = None
        memory.on_free = self._on_free

    @property
    def n_waiting(self) -> int:
        """The number of clients that wait for their handshake."""
        return len(self._waiting)

    def enter(self, ticket: Ticket) -> bool:
        """Start a handshake now or queue it; return True when it started."""
        if not self._waiting and self._memory.has_room_for_handshake:
            self._start(ticket)
            return True
        self._waiting[ticket] = None
        if self._looking is None:
            self._looking = self._loop.call_later(
                LOOK_S, supervisor.guarded("TLS handshakes", self._look)
            )
        return False

    def note_finished(self, ticket: Ticket) -> None:
        """Update the average duration: a slow machine or link delays all handshakes of a storm."""
        self._usual_s += WEIGHT * (self._loop.time() - ticket.started_s - self._usual_s)

    def leave(self, ticket: Ticket) -> None:
        """Remove a handshake that is over or cancelled; do nothing if it was removed before."""
        self._waiting.pop(ticket, None)
        self._running.pop(ticket, None)

    def close(self) -> None:
        """Start nothing more."""
        self._waiting.clear()
        if self._pumping is not None:
            self._pumping.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def _start(self, ticket: Ticket) -> None:
        ticket.started_s = self._loop.time()
        self._running[ticket] = None
        ticket.start()

    def _on_free(self) -> None:
        if self._waiting and self._pumping is None and self._memory.has_room_for_handshake:
            self._pumping = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        for _ in range(STARTS_PER_ITERATION):
            if not self._waiting or not self._memory.has_room_for_handshake:
                return
            ticket = next(iter(self._waiting))
            del self._waiting[ticket]
            supervisor.guard("TLS handshakes", self._start, ticket)
        self._on_free()

    def _look(self) -> None:
        """While clients wait, end the handshakes that take much longer than the average."""
        self._looking = None
        if not self._waiting:
            return
        self._looking = self._loop.call_later(
            LOOK_S, supervisor.guarded("TLS handshakes", self._look)
        )
        patience_s = min(max(PATIENCE_S, PATIENCE * self._usual_s), MAX_PATIENCE_S)
        oldest_s = self._loop.time() - patience_s
        slow = [ticket for ticket in self._running if ticket.started_s < oldest_s]
        for ticket in slow[: len(self._waiting)]:
            ticket.give_way()
        self._on_free()
