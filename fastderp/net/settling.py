"""Detects the end of a relay's list of clients, for a new watcher. PROTOCOL §7.3.

The protocol does not mark the end. Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# The list ends with a pause of PAUSE_S, at the latest after LIMIT_S.
PAUSE_S = 0.2
LIMIT_S = 2.0


class Settling:
    """Calls `settled` once when the list is complete.

    That is PAUSE_S after its last client or LIMIT_S after its request.
    """

    __slots__ = ("_due_s", "_limit_s", "_loop", "_settled", "_timer")

    def __init__(
        self, settled: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Begin now, on the clock of `loop`, the running loop by default."""
        self._loop = loop or asyncio.get_running_loop()
        self._settled = settled
        self._due_s = self._limit_s = self._loop.time() + LIMIT_S
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(self._due_s, self._look)

    def arrived(self) -> None:
        """Note that the relay has listed a client."""
        if self._timer is None:
            return
        self._due_s = min(self._limit_s, self._loop.time() + PAUSE_S)
        # `_look` postpones the timer, so a long list costs one clock reading per client.
        if self._due_s < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due_s, self._look)

    def stop(self) -> None:
        """Cancel the callback."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._loop.time() < self._due_s:
            self._timer = self._loop.call_at(self._due_s, self._look)
        else:
            self._timer = None
            self._settled()
