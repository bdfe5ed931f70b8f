"""Reloads the parts of a relay, each by itself, and logs one line for each.

A part is loaded again until descriptors and memory suffice. Loop thread only. RELIABILITY F33, F36.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from fastderp.errors import DerpError
from fastderp.server.observe.supervisor import supervisor
from fastderp.util.shortage import shortage_of

log: logging.Logger = logging.getLogger("fastderp")

RETRY_S = 1.0

Reload = Callable[[], Awaitable[str]]
"""Loads a part again and returns what has changed. Raises DerpError, and changes nothing, when the
input cannot be used."""


class Reloads:
    """The reloadable parts of a relay, by name.

    The reloads of one part run one after another. Requests that arrive meanwhile cause one more,
    because the files may have changed after they were read.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Reload] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        # parts to reload, and why
        self._wanted: dict[str, str] = {}

    def add(self, name: str, reload: Reload) -> None:
        """Add a part."""
        self._parts[name] = reload

    async def run(self) -> None:
        """Reload every part, and return when all are done; a failure does not stop the others."""
        log.info("reloading" if self._parts else "nothing to reload")
        await self._run(self._parts, "reload")

    async def run_one(self, name: str) -> None:
        """Reload a part whose files have changed."""
        await self._run([name], "files changed")

    def close(self) -> None:
        """Cancel the reloads that run."""
        self._wanted.clear()
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def _run(self, names: Iterable[str], why: str) -> None:
        tasks = [self._start(name, why) for name in names]
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, name: str, why: str) -> asyncio.Task[None]:
        """Request a reload of a part; return the task that does it."""
        self._wanted[name] = why
        task = self._running.get(name)
        if task is None:
            task = supervisor.start(
                "reload", lambda: self._reload_wanted(name), name=f"reload of {name}"
            )
            self._running[name] = task
        return task

    async def _reload_wanted(self, name: str) -> None:
        """Reload a part until no request is left."""
        while (why := self._wanted.pop(name, None)) is not None:
            try:
                await self._reload(name, why)
            except asyncio.CancelledError:
                # The supervisor starts it again if only an awaited object was cancelled.
                self._wanted.setdefault(name, why)
                raise
        self._running.pop(name, None)

    async def _reload(self, name: str, why: str) -> None:
        while name not in self._wanted:
            try:
                text = await self._parts[name]()
            except DerpError as error:
                kept = "the previous one stays in force"
                if not shortage_of(error):
                    log.error("%s: %s: %s; %s", why, name, error, kept)
                    return
                log.error("%s: %s: %s; %s; next attempt in %g s", why, name, error, kept, RETRY_S)
            except Exception as error:
                supervisor.note("reload", error, f"{name} stays as it is")
                return
            else:
                log.info("%s: %s: %s", why, name, text)
                return
            await asyncio.sleep(RETRY_S)
