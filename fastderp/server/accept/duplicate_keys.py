"""Sends Health frames when clients share a key, and when that ends. PROTOCOL §6.3.

Loop thread only. Packets for a copied machine state arrive at either machine; the Health frame is
the owner's only sign of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastderp.server.observe.supervisor import supervisor

# A client that has changed its network logs in again while its previous connection seems alive: the
# relay detects the end of that 15 s (-tcp-user-timeout) after the next keep-alive, due within 65 s.
SHARED_S = 90.0
# Limit of the sessions to look at: a hostile client may log in with one key thousands of times, and
# each of its logins must not cost more than the previous one.
LOOKED_AT = 4


class Duplicates:
    """Warns the clients of a key that has had several sessions for SHARED_S.

    Keeps the warned ones, so that only these get the all-clear.

    Args:
        handles: returns sessions of a key, up to a number of them; of the data plane.
        tell: sends a session's Health and returns whether that is new to it; of the data plane.
    """

    def __init__(
        self, handles: Callable[[bytes, int], list[int]], tell: Callable[[int, bool], bool]
    ) -> None:
        self._handles = handles
        self._tell = tell
        self._warned: set[int] = set()
        # by key: the timer of the warning and the sessions that get it
        self._shared: dict[bytes, tuple[asyncio.TimerHandle, set[int]]] = {}

    def joined(self, key: bytes, handle: int) -> None:
        """Note a login."""
        handles = self._handles(key, LOOKED_AT)
        if len(handles) < 2:
            return
        if any(one in self._warned for one in handles):
            self._warn({handle, *handles})
            return
        shared = self._shared.get(key)
        if shared is None:
            warn = supervisor.guarded("duplicate keys", self._due)
            timer = asyncio.get_running_loop().call_later(SHARED_S, warn, key)
            shared = self._shared[key] = (timer, set())
        shared[1].update((handle, *handles))

    def left(self, key: bytes, handle: int) -> None:
        """Note a session's end: send the all-clear to the last one."""
        if key in self._shared:
            timer, sessions = self._shared[key]
            sessions.discard(handle)
            if len(sessions) < 2:
                timer.cancel()
                del self._shared[key]
        self._warned.discard(handle)
        if not self._warned:
            return
        remaining = self._handles(key, LOOKED_AT)
        if len(remaining) == 1 and remaining[0] in self._warned:
            self._warned.discard(remaining[0])
            self._tell(remaining[0], False)

    def close(self) -> None:
        """Warn no further client."""
        for timer, _ in self._shared.values():
            timer.cancel()
        self._shared.clear()

    def _due(self, key: bytes) -> None:
        _, sessions = self._shared.pop(key)
        self._warn(sessions)

    def _warn(self, sessions: set[int]) -> None:
        for one in sessions - self._warned:
            if self._tell(one, True):
                self._warned.add(one)
