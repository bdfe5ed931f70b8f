"""The deadlines of connections before their login, with one timer of the loop for all of them.

Most connections are logged in long before their deadline, so a timer for each would be wasted.
Loop thread only.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from fastderp.server.observe.supervisor import supervisor


class Timed(Protocol):
    """An object with a deadline: `budget_s` belongs to `Deadlines`, 0 without a deadline."""

    budget_s: float

    def on_time(self) -> None:
        """End or continue: the budget is used up."""


class Deadlines:
    """Calls `on_time` of each owner when its budget is used up, within a millisecond or two."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # by budget: owners and the times they are due, in ascending order; there are few budgets
        self._queues: dict[float, dict[Timed, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = float("inf")

    def start(self, owner: Timed, budget_s: float) -> None:
        """Give an owner `budget_s` seconds from now on, instead of its earlier budget."""
        if owner.budget_s:
            self.stop(owner)
        owner.budget_s = budget_s
        due_s = self._loop.time() + budget_s
        queue = self._queues.get(budget_s)
        if queue is None:
            queue = self._queues[budget_s] = {}
        queue[owner] = due_s
        if due_s < self._next_s:
            self._arm(due_s)

    def stop(self, owner: Timed) -> None:
        """Drop the owner's deadline, if it has one."""
        if owner.budget_s:
            self._queues[owner.budget_s].pop(owner, None)
            owner.budget_s = 0.0

    def close(self) -> None:
        """Drop all deadlines."""
        self._queues.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_s = due_s
        self._timer = self._loop.call_at(due_s, supervisor.guarded("deadlines", self._run))

    def _run(self) -> None:
        self._timer, self._next_s = None, float("inf")
        now_s = self._loop.time()
        for owner in [owner for queue in self._queues.values() for owner in _due(queue, now_s)]:
            # An earlier one may have ended this one.
            if owner.budget_s:
                self.stop(owner)
                supervisor.guard("deadlines", owner.on_time)
        self._queues = {budget_s: queue for budget_s, queue in self._queues.items() if queue}
        if self._queues:
            self._arm(min(next(iter(queue.values())) for queue in self._queues.values()))


def _due(queue: dict[Timed, float], now_s: float) -> list[Timed]:
    due = []
    for owner, due_s in queue.items():
        if due_s > now_s:
            break
        due.append(owner)
    return due
