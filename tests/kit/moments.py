"""Cancels a task at each moment of its life: after no turn of the event loop, after one, and so on.

for moment in every_moment():
    task = asyncio.create_task(...)
    await moment.cancel(task)
    ...  # what must hold now
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any


async def turns(n: int) -> None:
    """Give the loop's other tasks `n` turns."""
    for _ in range(n):
        await asyncio.sleep(0)


class Moment:
    """A number of turns of the event loop after the start of a task."""

    def __init__(self, n_turns: int) -> None:
        self.n_turns = n_turns
        self.is_after_end = False

    async def cancel(self, task: asyncio.Future[Any]) -> None:
        """Cancel the task that has just been created, at this moment, and wait for its end."""
        await turns(self.n_turns)
        self.is_after_end = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def every_moment(limit: int = 200) -> Iterator[Moment]:
    """Yield the moments up to the first after a task's end; it fails if that is above the limit."""
    for n_turns in range(limit):
        moment = Moment(n_turns)
        yield moment
        if moment.is_after_end:
            return
    raise AssertionError(f"the task has not ended after {limit} turns")
