"""Runs periodic work: samples round-trip times, sums up the log, returns memory.

Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastderp.dataplane.plane import Plane
from fastderp.server.observe.connection_log import ConnectionLog
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.traffic import RoundTrips

INTERVAL_S = 10.0
# Seconds for the workers to free memory before the heap is trimmed.
TRIM_DELAY_S = 0.2


class Maintenance:
    """Works every INTERVAL_S seconds from `start` until `stop`.

    Args:
        plane: the data plane to trim.
        round_trips: samples `derp_tcp_rtt` (PROTOCOL §14); None for no samples.
        connection_log: logs the number of lines that it has held back.
        freed_bytes: returns the total of memory freed by connections before their login.
    """

    def __init__(
        self,
        plane: Plane,
        round_trips: RoundTrips | None,
        connection_log: ConnectionLog,
        freed_bytes: Callable[[], int],
    ) -> None:
        self._plane = plane
        self._round_trips = round_trips
        self._connection_log = connection_log
        self._freed_bytes = freed_bytes
        self._task: asyncio.Task[None] | None = None
        # Of the last trim. None yet: the first one returns what the start has freed.
        self._moved: tuple[int, int] | None = None

    def start(self) -> None:
        """Start on the running loop."""
        self._task = supervisor.start("maintenance", self._run)

    def stop(self) -> None:
        """Stop; safe to repeat."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            # Each has a guard: a failure does not stop the others.
            if self._round_trips is not None:
                supervisor.guard("maintenance", self._round_trips.sample)
            supervisor.guard("maintenance", self._connection_log.sum_up)
            await self._trim_memory()

    async def _trim_memory(self) -> None:
        """Return free heap memory to the system, after a storm of logins or a burst."""
        moved = (self._plane.n_moved(), self._freed_bytes())
        if moved == self._moved:
            return  # an idle relay has freed no memory to return
        self._moved = moved
        self._plane.trim()
        await asyncio.sleep(TRIM_DELAY_S)
        self._plane.trim_memory()
