"""Runs functions that may block for long, such as reads of a network's files, in daemon threads.

Each has a thread of its own: one that hangs delays no other, and not the end of the process. Any
thread with an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from fastderp.errors import ShortageError

NO_THREAD = "No thread available"
T = TypeVar("T")


def in_thread(name: str, work: Callable[[], T]) -> asyncio.Future[T]:
    """Call `work` in a new daemon thread; return the future of its result or exception.

    The thread goes on when the future is cancelled. Raises ShortageError when the system has no
    thread.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        settle: Callable[..., None]
        result: object
        try:
            settle, result = outcome.set_result, work()
        except BaseException as error:
            settle, result = outcome.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_settle, outcome, settle, result)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        raise ShortageError(NO_THREAD) from error
    return outcome


def _settle(outcome: asyncio.Future[T], settle: Callable[..., None], result: object) -> None:
    if not outcome.done():
        settle(result)
