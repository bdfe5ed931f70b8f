"""Tells a service manager that the relay works: the event loop and every thread of the data plane.

Loop thread only. A loop that hangs sends no notice, so the manager restarts the relay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log: logging.Logger = logging.getLogger("fastderp")

# Notices per period of the manager: one that comes late does not end the relay.
PER_PERIOD = 4


class Watchdog:
    """Feeds the watchdog of a service manager.

    Args:
        period_s: the manager ends a relay without a notice for this long.
        stuck_workers: returns the data plane's threads that have not woken up since the last call.
        feed: sends the notice to the manager.
    """

    def __init__(
        self, period_s: float, stuck_workers: Callable[[], list[int]], feed: Callable[[], None]
    ) -> None:
        self._interval_s = period_s / PER_PERIOD
        self._stuck_workers = stuck_workers
        self._feed = feed
        self._reported: list[int] = []

    async def run(self) -> None:
        """Feed it until cancelled."""
        while True:
            self._check(self._stuck_workers())
            await asyncio.sleep(self._interval_s)

    def _check(self, stuck: list[int]) -> None:
        if not stuck:
            self._feed()
        elif stuck != self._reported:
            log.error(
                "data-plane threads %s do not answer: the service manager's watchdog is not fed",
                ", ".join(map(str, stuck)),
            )
        self._reported = stuck
