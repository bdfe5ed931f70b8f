"""Shares the loop thread between connections that have more work than fits into one step.

A step is one bounded piece of work of one connection. ARCHITECTURE §2, RELIABILITY F32. Loop
thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from fastderp.server.observe.supervisor import supervisor

# Limit for the steps of one iteration of the loop, which runs at least one. Logins, STUN and the
# data plane's events are served between two iterations.
SLICE_S = 0.001


class RoundRobin:
    """Runs steps in the order they were added, for up to SLICE_S per iteration of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._handle: asyncio.Handle | None = None

    def add(self, step: Callable[[], None]) -> None:
        """Queue `step`; it may be called after its owner is closed."""
        self._waiting.append(step)
        if self._handle is None:
            self._handle = self._loop.call_soon(self._run)

    def close(self) -> None:
        """Stop calling steps."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()

    def _run(self) -> None:
        deadline_s = time.monotonic() + SLICE_S
        while self._waiting:
            # A failing step does not stop the others.
            supervisor.guard("request", self._waiting.popleft())
            if time.monotonic() > deadline_s:
                break
        self._handle = self._loop.call_soon(self._run) if self._waiting else None
