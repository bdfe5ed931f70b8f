"""Sends Health frames when clients share a key, and when that ends. PROTOCOL §6.3.

Loop thread only. Packets for a copied machine state arrive at either machine; the Health frame is
the owner's only sign of it.
"""

from __future__ import annotations

from collections.abc import Callable


class Duplicates:
    """Keeps the clients that were warned, so that only these get the all-clear."""

    def __init__(
        self, handles: Callable[[bytes], list[int]], tell: Callable[[int, bool], bool]
    ) -> None:
        """Take two functions of the data plane: the sessions of a key, and a session's Health."""
        self._handles = handles
        self._tell = tell
        self._warned: set[int] = set()

    def joined(self, key: bytes) -> None:
        """Note a login: warn the client and the others with its key, if any."""
        handles = self._handles(key)
        if len(handles) > 1:
            for handle in handles:
                if handle not in self._warned and self._tell(handle, True):
                    self._warned.add(handle)

    def left(self, key: bytes, handle: int) -> None:
        """Note a session's end: send the all-clear to the last one."""
        self._warned.discard(handle)
        if not self._warned:
            return
        remaining = self._handles(key)
        if len(remaining) == 1 and remaining[0] in self._warned:
            self._warned.discard(remaining[0])
            self._tell(remaining[0], False)
