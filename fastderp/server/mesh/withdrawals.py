"""Withdraws the forwarders of ended links, a few per iteration of the loop. PROTOCOL §7.5.

A link may have announced 250,000 keys; withdrawing them at once would delay logins by half a
second. Packets for a key that is not withdrawn yet are dropped, as for any ended session. Loop
thread only.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fastderp.dataplane.plane import Plane
from fastderp.server.observe.supervisor import supervisor

# About 1 ms on an idle machine.
KEYS_PER_TURN = 250
# Seconds before the next attempt after an internal error.
RETRY_S = 1.0


class Withdrawals:
    """The keys that remain to be withdrawn, by link."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._due: deque[tuple[int, set[bytes]]] = deque()
        self._next: asyncio.Handle | None = None

    @property
    def is_done(self) -> bool:
        """Whether no key remains."""
        return not self._due

    @property
    def keys(self) -> set[bytes]:
        """The keys that the data plane still has as announced."""
        return set().union(*(keys for _, keys in self._due))

    def add(self, handle: int, keys: set[bytes]) -> None:
        """Withdraw `keys` from the link of this session; the set passes to this object."""
        if keys:
            self._due.append((handle, keys))
            self._step()

    def close(self) -> None:
        """Drop the remaining keys: the data plane is about to close."""
        if self._next is not None:
            self._next.cancel()
        self._due.clear()

    def _step(self) -> None:
        if self._next is None and self._due:
            loop = asyncio.get_running_loop()
            if supervisor.guard("mesh withdrawal", self._take_back):
                if self._due:
                    self._next = loop.call_soon(self._go_on)
            else:
                self._next = loop.call_later(RETRY_S, self._go_on)

    def _go_on(self) -> None:
        self._next = None
        self._step()

    def _take_back(self) -> None:
        left = KEYS_PER_TURN
        while left and self._due:
            handle, keys = self._due[0]
            while left and keys:
                # Not next(iter(keys)): after many removals it scans every empty slot again.
                key = keys.pop()
                try:
                    self._plane.remove_forwarder(key, handle)
                except BaseException:
                    keys.add(key)
                    raise
                left -= 1
            if not keys:
                self._due.popleft()
