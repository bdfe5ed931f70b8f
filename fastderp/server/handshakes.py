"""TLS handshake steps in helper threads while many connections are waiting for theirs. DESIGN §5.

A step costs a few hundred microseconds without the GIL: in a login storm other cores can do it. With little to do the loop thread
does it itself, which is cheaper in all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake

Outcome = bool | TlsError
"""What a step led to: whether the handshake is done, or why it failed."""

# The loop thread has more to do per connection than a thread here: a few keep it busy.
THREADS_LIMIT = 4


def take_step(handshake: Handshake) -> Outcome:
    """Take a step in this thread."""
    try:
        return handshake.step()
    except TlsError as error:
        return error


class HandshakeThreads:
    """Threads that take steps and report back to the loop; none is started before there is work."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report to callbacks on `loop`."""
        n_cores = len(os.sched_getaffinity(0))
        self._loop = loop
        self._pool = ThreadPoolExecutor(min(n_cores, THREADS_LIMIT), "fastderp-tls")
        self.worthwhile = n_cores > 1

    def submit(self, handshake: Handshake, report: Callable[[Outcome], None]) -> None:
        """Take a step in some thread; `report` is called on the loop with the outcome."""
        self._pool.submit(self._work, handshake, report)

    def close(self) -> None:
        """End the threads; steps under way are finished and reported to nobody."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, handshake: Handshake, report: Callable[[Outcome], None]) -> None:
        self._loop.call_soon_threadsafe(report, take_step(handshake))
