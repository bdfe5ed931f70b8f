"""Measures the lag of the event loop, which delays every login, page and STUN request.

Loop thread only.
"""

from __future__ import annotations

import asyncio

from fastderp.server.observe.values import Histogram, Value

INTERVAL_S = 0.25
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class LoopLag:
    """Schedules a callback every INTERVAL_S and observes how late it runs."""

    def __init__(self) -> None:
        self._seconds = Histogram(BOUNDS_S)
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start measuring a loop."""
        due_s = loop.time() + INTERVAL_S
        self._timer = loop.call_at(due_s, self._observe, loop, due_s)

    def stop(self) -> None:
        """Stop; safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()

    def _observe(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self.start(loop)
        # uvloop's timers have a resolution of 1 ms and may fire early by that.
        self._seconds.observe(max(0.0, loop.time() - due_s))

    def metrics(self) -> dict[str, Value]:
        """Return the histogram by the names of `metrics.METRICS`."""
        return {"fastderp_loop_lag_seconds": self._seconds}
