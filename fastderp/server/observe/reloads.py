"""Runs the reloads of SIGHUP, and repeats each until descriptors and memory suffice.

Loop thread only. RELIABILITY F33, F36.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fastderp.errors import DerpError
from fastderp.server.observe.supervisor import supervisor
from fastderp.util.shortage import shortage_of

log: logging.Logger = logging.getLogger("fastderp")

RETRY_S = 1.0


class Reloads:
    """The reloadable parts of a relay."""

    def __init__(self) -> None:
        self._reloads: list[Callable[[], None]] = []
        self._retries: list[asyncio.TimerHandle] = []

    def append(self, reload: Callable[[], None]) -> None:
        """Add a part.

        Args:
            reload: logs unusable input, which changes nothing; raises a DerpError whose cause is
                a shortage of descriptors or memory to be called again.
        """
        self._reloads.append(reload)

    def run(self) -> None:
        """Reload every part; a failure does not stop the others."""
        self.close()
        log.info("reloading" if self._reloads else "nothing to reload")
        for reload in self._reloads:
            supervisor.guard("reload", self._run_one, reload)

    def close(self) -> None:
        """Cancel the pending attempts."""
        for retry in self._retries:
            retry.cancel()
        self._retries.clear()

    def _run_one(self, reload: Callable[[], None]) -> None:
        try:
            reload()
        except DerpError as error:
            if not shortage_of(error):
                raise
            log.error("%s; nothing changes until the next attempt in %g s", error, RETRY_S)
            self._retries.append(
                asyncio.get_running_loop().call_later(
                    RETRY_S, supervisor.guarded("reload", self._run_one), reload
                )
            )
