"""Runs the same work for many requests, one run at a time. Loop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastderp.server.observe.supervisor import supervisor


class CoalescedRuns:
    """Requests during a run cause one more after it, because it may have missed their cause.

    A run that fails is repeated, as the supervisor does.
    """

    def __init__(
        self, task: str, work: Callable[[], Coroutine[Any, Any, None]], *, name: str = ""
    ) -> None:
        """Do nothing until the first request; task and name are those of `Supervisor.start`."""
        self._task = task
        self._work = work
        self._name = name
        self._running: asyncio.Task[None] | None = None
        self.is_requested: bool = False
        """Whether there was a request since the last run began."""

    def request(self) -> asyncio.Task[None]:
        """Request a run; return the task that ends when no request is left."""
        self.is_requested = True
        if self._running is None:
            self._running = supervisor.start(self._task, self._run, name=self._name)
        return self._running

    def close(self) -> None:
        """Cancel the run."""
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        while self.is_requested:
            self.is_requested = False
            try:
                await self._work()
            except BaseException:
                self.is_requested = True  # for the supervisor's next start
                raise
        self._running = None
