"""Waits for the processes that process 1 of a container adopts, so that none remains a zombie.

Any thread.
"""

from __future__ import annotations

import contextlib
import os
import threading

# Held from the start of a child until its exit code is known: `reap_orphans` would take that.
own_child: threading.Lock = threading.Lock()


def reap_orphans() -> None:
    """Wait for the children that have ended, unless one of our own runs."""
    if not own_child.acquire(blocking=False):
        return
    try:
        with contextlib.suppress(ChildProcessError):  # there is none
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    finally:
        own_child.release()
