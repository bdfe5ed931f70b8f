"""Notifies a service manager such as systemd of readiness, reload and stop (sd_notify).

Does nothing without $NOTIFY_SOCKET. Never blocks: the notice is lost if the manager does not read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class ServiceManager:
    """The socket that the service manager reads."""

    def __init__(self, address: str) -> None:
        """Take the address in $NOTIFY_SOCKET: a path, `@` and an abstract name, or "" for none."""
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def ready(self, status: str) -> None:
        """Notify that the relay serves clients, at the start and after a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Notify that a reload has begun; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str, within_s: float) -> None:
        """Notify that the relay is stopping, and ask for the time that it takes."""
        extension = f"EXTEND_TIMEOUT_USEC={round(within_s * 1e6)}"
        self._send("STOPPING=1", f"STATUS={status}", extension)

    def status(self, status: str) -> None:
        """Tell the status in one line."""
        self._send(f"STATUS={status}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # The relay runs even without a manager, or with one that does not read.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto("\n".join(assignments).encode(), self._address)


def watchdog_period_s(environment: Mapping[str, str]) -> float:
    """Return the period of the manager's watchdog over this process; 0 without one."""
    period_us = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(period_us) / 1e6 if is_ours and period_us.isascii() and period_us.isdigit() else 0.0
