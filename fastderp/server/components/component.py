"""What a component of a running relay has. Loop thread only."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from fastderp.server.observe.metrics import Value
from fastderp.server.server import Server


class Component:
    """A part of a relay with a life of its own. Every method may be left out.

    `open` of all components comes before `start` of any: what an operator may have got wrong is found before anything
    is served. `close` comes in the opposite order, also for a component that did not get as far as `start`.
    """

    # For log lines.
    name: ClassVar[str]

    async def open(self) -> None:
        """Read files, bind sockets. Raises DerpError that names what cannot be used."""

    async def check(self) -> list[str]:
        """Try what `open` and `start` need without binding a socket or making a file; return what was found.

        Comes instead of `open`; `close` is due. Raises DerpError as they do.
        """
        return []

    async def start(self, server: Server) -> None:
        """Begin to work for a server whose data plane runs. Raises DerpError."""

    async def close(self) -> None:
        """Give back what `open` and `start` have taken; end what they have begun."""

    def describe(self) -> list[str]:
        """Return what the log says of it once it has started."""
        return []

    def warnings(self) -> list[str]:
        """Return what the operator should look at."""
        return []

    @property
    def reloadable(self) -> bool:
        """Whether `reload` can change anything."""
        return type(self).reload is not Component.reload

    def reload(self) -> None:
        """Read again what may have changed; what cannot be used is logged and changes nothing. Does not wait.

        Raises a DerpError whose cause is a shortage of descriptors or memory to be called again.
        """

    def metrics(self) -> Mapping[str, Value]:
        """Return its counters by the names of the table of metrics."""
        return {}


def readable_by_all(path: Path | None) -> list[str]:
    """Return a warning when a file with a secret can be read by every user of this machine."""
    if path is None or not path.stat().st_mode & stat.S_IROTH:
        return []
    return [f"{path} is a secret, and everybody on this machine can read it: chmod 600 it"]


def is_there(path: Path) -> bool:
    """Whether there is anything at a path that may be looked at."""
    return os.path.lexists(path)
