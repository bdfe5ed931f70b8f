"""Follows files and reports their changes. Loop thread; other threads look at the files.

Polls instead of using inotify: that one reports nothing for network file systems, and a link that
leads to another folder, as Kubernetes and certbot make, needs a separate watch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from fastderp.errors import ShortageError
from fastderp.util import files
from fastderp.util.threads import in_thread

POLL_S = 1.0


class WatchedFiles:
    """The files of each part, as last seen.

    Each part is followed by itself: one whose file system hangs delays no other.

    Args:
        parts: the files of each part, by name.
        changed: awaited with the name of a part when its files have changed, and then stayed
            unchanged between two checks.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[Path]], changed: Callable[[str], Awaitable[None]]
    ) -> None:
        """Look at the files now; later changes count."""
        self._parts = {name: _Part(paths) for name, paths in parts.items()}
        self._changed = changed

    def note_new(self) -> None:
        """Let files that did not exist not count as changed: the start has just made them."""
        for part in self._parts.values():
            now = part.look()
            part.seen = tuple(before or after for before, after in zip(part.seen, now, strict=True))

    async def run(self) -> None:
        """Follow the files until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, part in self._parts.items():
                group.create_task(self._follow(name, part))

    async def skip(self, name: str) -> None:
        """Let the changes of a part so far not count: it is about to be reloaded.

        Raises ShortageError when the system has no thread.
        """
        if (part := self._parts.get(name)) is not None:
            part.settle(await in_thread("files", part.look))
            part.is_unsettled = False

    async def _follow(self, name: str, part: _Part) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            with contextlib.suppress(ShortageError):  # looks again later
                if part.settle(await in_thread("files", part.look)):
                    await self._changed(name)


class _Part:
    """The state of the files of one part."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.seen = self.look()
        self.is_unsettled = False

    def look(self) -> tuple[files.Fingerprint, ...]:
        """Return the state of the files now. Any thread."""
        return tuple(files.fingerprint(path) for path in self._paths)

    def settle(self, seen: tuple[files.Fingerprint, ...]) -> bool:
        """Note the state of the files; return whether they have changed and are settled now."""
        is_changing, self.seen = seen != self.seen, seen
        is_settled, self.is_unsettled = self.is_unsettled and not is_changing, is_changing
        return is_settled
