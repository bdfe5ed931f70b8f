"""The steps of TLS handshakes, in the loop thread or in helper threads. ARCHITECTURE §2, §5.

A step costs a few hundred microseconds without the GIL. In a login storm, helper threads run the
steps on other cores; otherwise the loop thread runs them, which costs less CPU time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from fastderp.tls.handshake import Handshake
from fastderp.util.machine import n_cores

log: logging.Logger = logging.getLogger("fastderp")

Outcome = bool | Exception
"""The outcome of a step: whether the handshake is complete, or the error."""

# The loop thread has more work per connection than a helper thread, so a few keep it busy.
THREADS_LIMIT = 4


def take_step(handshake: Handshake) -> Outcome:
    """Run a step in this thread."""
    try:
        return handshake.step()
    except Exception as error:  # an internal error ends the connection, not the thread
        return error


class HandshakeThreads:
    """Threads that run steps and report to the loop; they start on demand.

    If the system refuses a thread, the running threads take its work; if none runs, the loop does.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report to callbacks on `loop`."""
        cores = n_cores()
        self._loop = loop
        self._limit = min(cores, THREADS_LIMIT)
        self._threads: list[threading.Thread] = []
        self._work: SimpleQueue[tuple[Handshake, Callable[[Outcome], None]] | None] = SimpleQueue()
        self.worthwhile: bool = cores > 1
        # number of threads that the system has refused
        self.n_shortages: int = 0

    def submit(self, handshake: Handshake, report: Callable[[Outcome], None]) -> None:
        """Run a step in a helper thread and call `report` with the outcome on the loop."""
        if len(self._threads) < self._limit:
            self._start_thread()
        if self._threads:
            self._work.put((handshake, report))
        else:
            self._loop.call_soon(lambda: report(take_step(handshake)))

    def close(self) -> None:
        """End the threads; steps under way are finished and not reported."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _start_thread(self) -> None:
        name = f"fastderp-tls-{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.n_shortages += 1
            if self.n_shortages == 1:
                log.warning("no thread for TLS handshakes: %s; logins are slower", error)
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while self._do_work(self._work.get()):
            pass

    def _do_work(self, work: tuple[Handshake, Callable[[Outcome], None]] | None) -> bool:
        """Run a step; a separate function, so that a waiting thread holds no reference to one."""
        if work is None:
            return False
        handshake, report = work
        self._loop.call_soon_threadsafe(report, take_step(handshake))
        return True
