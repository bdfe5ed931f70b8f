"""Health frames that tell clients when they share a key, and when that is over. PROTOCOL §6.3.

Loop thread only. The owner of a copied machine state sees it nowhere else: packets arrive now
here, now there.
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
    """Remembers who was told, so that nobody else hears that all is well again."""

    def __init__(
        self, handles: Callable[[bytes], list[int]], send: Callable[[int, bytes], bool]
    ) -> None:
        """Take what the data plane offers: the sessions of a key, and sending to one."""
        self._handles = handles
        self._send = send
        self._told: set[int] = set()

    def joined(self, key: bytes) -> None:
        """A client has logged in: tell it and the others, if there are any."""
        handles = self._handles(key)
        if len(handles) > 1:
            for handle in handles:
                if handle not in self._told and self._send(handle, _PROBLEM):
                    self._told.add(handle)

    def left(self, key: bytes, handle: int) -> None:
        """A session has ended: tell the last one that it is alone."""
        self._told.discard(handle)
        if not self._told:
            return
        remaining = self._handles(key)
        if len(remaining) == 1 and remaining[0] in self._told:
            self._told.discard(remaining[0])
            self._send(remaining[0], _HEALTHY)
