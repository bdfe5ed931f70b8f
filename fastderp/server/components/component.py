"""The interface of a relay's components. Loop thread only."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from fastderp.server.observe.values import Value
from fastderp.server.server import Server


class Component:
    """A part of a relay with its own start and end. Every method is optional.

    All components are opened before any is started, so that a configuration error is found before
    the relay serves clients. They are closed in reverse order, including those that never started.
    """

    # the name in log lines
    name: ClassVar[str]

    async def open(self) -> None:
        """Read files, bind sockets. Raises DerpError that names the unusable file or address."""

    async def check(self) -> list[str]:
        """Check the input of `open` and `start` and return the findings.

        It binds no socket and creates no file. Called instead of `open` and followed by `close`.
        Raises DerpError as `open` and `start` do.
        """
        return []

    async def start(self, server: Server) -> None:
        """Start working for a server whose data plane runs. Raises DerpError."""

    async def close(self) -> None:
        """Release what `open` and `start` acquired, and stop their tasks."""

    def describe(self) -> list[str]:
        """Return the component's log lines after the start."""
        return []

    def warnings(self) -> list[str]:
        """Return the warnings for the operator, after `start` or `check`."""
        return []

    def unready(self) -> list[str]:
        """Return why the relay must get no new clients; nothing while the component works."""
        return []

    def drain(self) -> None:
        """Send no further clients here: the relay is about to end."""

    @property
    def reloadable(self) -> bool:
        """Whether `reload` can change anything."""
        return type(self).reload is not Component.reload

    @property
    def files(self) -> list[Path]:
        """The files whose change causes a reload; none if the component follows them by itself."""
        return []

    async def reload(self) -> str:
        """Reload files that may have changed; return in one line what is in force and what changed.

        Raises DerpError for unusable input, which changes nothing. One caused by a shortage of
        descriptors or memory requests another call later.
        """
        return ""

    def metrics(self) -> Mapping[str, Value]:
        """Return the component's counters by the names of the table of metrics."""
        return {}


def readable_by_all(path: Path | None) -> list[str]:
    """Return a warning when every user of this machine can read a file with a secret."""
    if path is None or not os.path.exists(path) or not path.stat().st_mode & stat.S_IROTH:
        return []
    return [f"{path} is a secret, but readable by every user of this machine: chmod 600 it"]


def is_there(path: Path) -> bool:
    """Whether a path exists, as a dangling symlink too."""
    return os.path.lexists(path)
