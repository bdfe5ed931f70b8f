"""A socket in place of a service manager's, such as systemd's, that a relay notifies."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def service_manager(address: str) -> Iterator[Callable[[], dict[str, str]]]:
    """Read notices at `address`, as in $NOTIFY_SOCKET: a path, or `@` and an abstract name.

    Gives a function that returns the assignments of the next notice, which must come within 20 s.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind("\0" + address[1:] if address.startswith("@") else address)

        def told() -> dict[str, str]:
            lines = manager.recv(4096).decode().split("\n")
            return dict(line.split("=", 1) for line in lines)

        yield told
