"""What the relay does every few seconds by itself: sample round-trip times, sum up the log, give memory back.

Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastderp.dataplane.plane import Plane
from fastderp.server.observe.connection_log import ConnectionLog
from fastderp.server.observe.traffic import RoundTrips

INTERVAL_S = 10.0
# What the workers need to let go before the heap is looked at.
RESTED_S = 0.2


class Maintenance:
    """Runs every INTERVAL_S seconds from `start` until `stop`.

    Args:
        plane: whose memory is given back.
        round_trips: samples `derp_tcp_rtt` (PROTOCOL §14); None for no samples.
        journal: says how many lines it has held back.
        freed_bytes: counts the memory that connections have given back before their login.
    """

    def __init__(
        self,
        plane: Plane,
        round_trips: RoundTrips | None,
        journal: ConnectionLog,
        freed_bytes: Callable[[], int],
    ) -> None:
        self._plane = plane
        self._round_trips = round_trips
        self._journal = journal
        self._timer: asyncio.TimerHandle | None = None
        self._freed_bytes = freed_bytes
        self._moved = (0, 0)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._timer = loop.call_later(INTERVAL_S, self._run, loop)

    def stop(self) -> None:
        """End; safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._round_trips is not None:
            self._round_trips.sample()
        self._journal.sum_up()
        moved = (self._plane.n_moved(), self._freed_bytes())
        if moved == self._moved:
            self.start(loop)  # an idle relay has nothing to give back
            return
        self._moved = moved
        self._plane.rest()
        self._timer = loop.call_later(RESTED_S, self._trim, loop)

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return to the system what a storm of logins or a burst left in the heap."""
        self._plane.trim_memory()
        self.start(loop)
