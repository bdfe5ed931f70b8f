"""Tells a service manager such as systemd how the relay is: readiness, status, reload and stopping notices (sd_notify).

Does nothing without $NOTIFY_SOCKET. Never waits: a manager that does not read loses the notice.
"""

from __future__ import annotations

import contextlib
import socket
import time


class ServiceManager:
    """The socket that the service manager reads."""

    def __init__(self, address: str) -> None:
        """Take the address in $NOTIFY_SOCKET: a path, `@` before a name without a file, or "" for none."""
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """Say that clients are served, at the start and after a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that files are read again; `ready` is due."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the relay ends."""
        self._send("STOPPING=1", "STATUS=stopping")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # A manager that is gone or does not read is no reason not to serve.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto("\n".join(assignments).encode(), self._address)
