"""Sends Health frames when clients share a key, and when that ends. PROTOCOL §6.3.

Loop thread only. The owner of a copied machine state has no other sign of it: packets arrive at
either machine.
"""

from __future__ import annotations

from collections.abc import Callable

from fastderp.wire.protocol import FrameType, frame

PROBLEM = (
    "another connection uses the same node key, and packets go to whichever spoke last; "
    "was a machine's state copied?"
)

_PROBLEM = frame(FrameType.HEALTH, PROBLEM.encode())
_HEALTHY = frame(FrameType.HEALTH)


class Duplicates:
    """Remembers the clients with a problem, so that only these get the all-clear."""

    def __init__(
        self, handles: Callable[[bytes], list[int]], send: Callable[[int, bytes], bool]
    ) -> None:
        """Take two functions of the data plane: the sessions of a key, and sending to one."""
        self._handles = handles
        self._send = send
        self._told: set[int] = set()

    def joined(self, key: bytes) -> None:
        """Note a login: warn the client and the others with its key, if any."""
        handles = self._handles(key)
        if len(handles) > 1:
            for handle in handles:
                if handle not in self._told and self._send(handle, _PROBLEM):
                    self._told.add(handle)

    def left(self, key: bytes, handle: int) -> None:
        """Note a session's end: send the all-clear to the last one."""
        self._told.discard(handle)
        if not self._told:
            return
        remaining = self._handles(key)
        if len(remaining) == 1 and remaining[0] in self._told:
            self._told.discard(remaining[0])
            self._send(remaining[0], _HEALTHY)
