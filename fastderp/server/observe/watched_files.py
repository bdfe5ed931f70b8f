"""Follows files and reports their changes. Loop thread; another thread checks the files.

Polls instead of using inotify: that one reports nothing for network file systems, and a link that
leads to another folder, as Kubernetes and certbot make, needs a separate watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from fastderp.util import files

POLL_S = 1.0

_State = tuple[files.Fingerprint, ...]


class WatchedFiles:
    """The files of each part, as last seen.

    Args:
        parts: the files of each part, by name.
        changed: awaited with the name of a part when its files have changed, and then stayed
            unchanged between two checks.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[Path]], changed: Callable[[str], Awaitable[None]]
    ) -> None:
        """Look at the files now; later changes count."""
        self._parts = parts
        self._changed = changed
        self._seen = self._look()
        self._unsettled: set[str] = set()

    async def run(self) -> None:
        """Follow the files until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            for name in self._settled(await asyncio.to_thread(self._look)):
                await self._changed(name)

    async def skip(self) -> None:
        """Let the changes so far not count: everything is about to be reloaded."""
        self._seen = await asyncio.to_thread(self._look)
        self._unsettled.clear()

    def _look(self) -> dict[str, _State]:
        return {
            name: tuple(files.fingerprint(path) for path in paths)
            for name, paths in self._parts.items()
        }

    def _settled(self, seen: dict[str, _State]) -> list[str]:
        """Note the state of the files; return the parts that have changed and are settled now."""
        previous, self._seen = self._seen, seen
        changing = {name for name, state in seen.items() if state != previous[name]}
        settled = self._unsettled - changing
        self._unsettled = changing
        return sorted(settled)
