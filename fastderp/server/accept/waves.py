"""Closes the sessions of a relay's clients in waves, over a period of time. PROTOCOL §6.11.

Each client gets the time at which to reconnect. Its session is closed at that time, after the
frames that wait for it are written. Loop thread only.
"""

from __future__ import annotations

import asyncio
import heapq

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.util import jitter
from fastderp.wire.protocol import FrameType, frame, restarting_payload

# The last session is closed at this share of the period: its backlog gets the rest to be written.
SPREAD = 0.8
WAVE_S = 0.05
# Seconds after the period during which clients try to reconnect before they choose another relay.
TRY_FOR_S = 5.0
# Clients announced to per turn of the loop.
ANNOUNCED_PER_TURN = 256


class Waves:
    """The clients that have to leave, and when.

    Args:
        plane: has the sessions.
        seconds: the period, from now on.
    """

    def __init__(self, plane: Plane, seconds: float) -> None:
        self._plane = plane
        self._loop = asyncio.get_running_loop()
        began_s = self._loop.time()
        self._last_wave_s = began_s + SPREAD * seconds
        self._ends_s = began_s + seconds
        # (time, handle), the earliest first
        self._due: list[tuple[float, int]] = []
        self._left: set[int] = set()
        self._is_over = asyncio.Event()

    @property
    def n_left(self) -> int:
        """The number of clients that are still connected."""
        return len(self._left)

    async def run(self) -> None:
        """Close the sessions in waves; return when none is left, or at the end of the period."""
        try:
            await self._announce()
            while self._left and (now_s := self._loop.time()) < self._ends_s:
                while self._due and self._due[0][0] <= now_s:
                    self._plane.leave(heapq.heappop(self._due)[1])
                await asyncio.sleep(min(WAVE_S, self._ends_s - now_s))
        finally:
            self._is_over.set()

    async def wait(self) -> None:
        """Wait until `run` has returned."""
        await self._is_over.wait()

    def joined(self, handle: int) -> None:
        """Note a client whose login was under way when the drain began."""
        self._left.add(handle)
        now_s = self._loop.time()
        self._schedule(handle, jitter.uniform(now_s, max(now_s, self._last_wave_s)), now_s)

    def closed(self, event: ClosedEvent) -> None:
        """Note the end of a session."""
        self._left.discard(event.handle)

    async def _announce(self) -> None:
        handles = [
            session.handle
            for session in self._plane.sessions()
            if not session.mesh and not session.link
        ]
        self._left.update(handles)
        began_s = self._loop.time()
        gap_s = max(0.0, self._last_wave_s - began_s) / max(1, len(handles))
        for n, handle in enumerate(jitter.shuffled(handles), 1):
            self._schedule(handle, began_s + n * gap_s, self._loop.time())
            if n % ANNOUNCED_PER_TURN == 0:
                await asyncio.sleep(0)

    def _schedule(self, handle: int, at_s: float, now_s: float) -> None:
        """Tell a client to come back when its session is closed, and close it then."""
        wait_s = max(0.0, at_s - now_s)
        try_for_s = max(0.0, self._ends_s - now_s - wait_s) + TRY_FOR_S
        restarting = frame(FrameType.RESTARTING, restarting_payload(wait_s, try_for_s))
        self._plane.send(handle, restarting)
        heapq.heappush(self._due, (at_s, handle))


def announce_restart(plane: Plane, reconnect_in_s: float, try_for_s: float, spread_s: float) -> int:
    """See `Server.announce_restart`."""
    n_told = 0
    for session in plane.sessions():
        if not session.link:
            wait_s = reconnect_in_s + jitter.uniform(0, spread_s)
            n_told += plane.send(
                session.handle, frame(FrameType.RESTARTING, restarting_payload(wait_s, try_for_s))
            )
    return n_told
