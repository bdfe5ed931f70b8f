"""The memory that a relay's connections may hold together before their login, in bytes.

ARCHITECTURE §2, RELIABILITY F31. Loop thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from fastderp.tls.channel import Channel
from fastderp.tls.openssl import LIBRARY, VERSION
from fastderp.tls.record import RecordLayer
from fastderp.util import bounds

# Resident memory of a connection besides the bytes it has sent, rounded up; bench/login_memory.py
# measures both figures.
CONNECTION_BYTES = 2 * 1024
# Resident memory of an unfinished handshake, rounded up: with AWS-LC 9 KiB, charged SMALL_BYTES, so
# that it is not small; with OpenSSL 3.0 54 KiB, with OpenSSL 3.5 and its hybrid groups 77 KiB.
if LIBRARY == "AWS-LC":
    HANDSHAKE_BYTES = 32 * 1024
elif VERSION.startswith(("OpenSSL 3.0.", "OpenSSL 3.1.")):
    HANDSHAKE_BYTES = 56 * 1024
else:
    HANDSHAKE_BYTES = 80 * 1024
# Memory of a channel besides incomplete records and messages.
RECORD_LAYER_BYTES = 1024
WEBSOCKET_BYTES = 8 * 1024

# Connections that hold less than this are small: silent ones, and those whose handshake has not
# begun or is over. Each kind has a reserved share, so waiting clients do not stop handshakes, and
# running handshakes do not stop new connections.
SMALL_BYTES = 32 * 1024
SMALL_SHARE = 5 / 8

# The size classes are powers of two, from 4 KiB on.
_CLASS_SHIFT = 12
_N_CLASSES = 10
_N_SMALL = (SMALL_BYTES >> _CLASS_SHIFT).bit_length()


def tls_bytes(channel: Channel) -> int:
    """Return the memory of a TLS channel: TLS 1.2 keeps the OpenSSL object of the handshake."""
    return RECORD_LAYER_BYTES if isinstance(channel, RecordLayer) else HANDSHAKE_BYTES


class Account:
    """The memory of one connection. `evict` is called once, when the budget is exceeded."""

    __slots__ = ("evict", "n_bytes", "size_class")

    def __init__(self, evict: Callable[[], None]) -> None:
        self.evict: Callable[[], None] = evict
        self.n_bytes: int = 0
        # belongs to LoginMemory
        self.size_class: int = 0


class LoginMemory:
    """One budget for all connections; above it, the largest are evicted, the oldest of them first.

    Args:
        limit_bytes: the budget, within `bounds.LOGIN_MEMORY`.
    """

    def __init__(self, limit_bytes: int = bounds.LOGIN_MEMORY_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes: int = 0
        self.n_evicted: int = 0
        # total of freed bytes; when it grows, the heap has memory to return to the system
        self.freed_bytes: int = 0
        # called after memory was freed
        self.on_free: Callable[[], None] = _nothing
        self._small_bytes = 0
        self._small_limit_bytes = int(limit_bytes * SMALL_SHARE)
        # by size class; the oldest first
        self._accounts: list[dict[Account, None]] = [{} for _ in range(_N_CLASSES)]

    @property
    def has_room_for_handshake(self) -> bool:
        """Whether another handshake fits into the share of connections that are not small."""
        large_bytes = self.held_bytes - self._small_bytes + HANDSHAKE_BYTES
        return large_bytes <= self.limit_bytes - self._small_limit_bytes

    def charge(self, account: Account, n_bytes: int) -> bool:
        """Set the bytes of an account; return False if this account must be evicted."""
        before = account.n_bytes
        n_more = n_bytes - before
        if not n_more:
            return True
        account.n_bytes = n_bytes
        self.held_bytes += n_more
        old = account.size_class
        new = (n_bytes >> _CLASS_SHIFT).bit_length()
        if new >= _N_CLASSES:
            new = _N_CLASSES - 1
        if old == new and before and n_bytes:
            if new < _N_SMALL:
                self._small_bytes += n_more
        else:
            if before:
                del self._accounts[old][account]
                if old < _N_SMALL:
                    self._small_bytes -= before
            if n_bytes:
                self._accounts[new][account] = None
                if new < _N_SMALL:
                    self._small_bytes += n_bytes
            account.size_class = new
        if n_more < 0:
            self.freed_bytes -= n_more
            self.on_free()
            return True
        if self._small_bytes > self._small_limit_bytes or self.held_bytes > self.limit_bytes:
            return self._make_room(account)
        return True

    def release(self, account: Account) -> None:
        """Clear an account, and drop its callback with the cycle through its owner."""
        account.evict = _nothing
        self.charge(account, 0)

    def _make_room(self, charged: Account) -> bool:
        """Evict until the budget is kept; return whether `charged` may stay."""
        while self._small_bytes > self._small_limit_bytes:
            if not self._evict(_N_SMALL - 1, charged):
                return False
        while self.held_bytes > self.limit_bytes:
            if not self._evict(_N_CLASSES - 1, charged):
                return False
        return True

    def _evict(self, largest: int, charged: Account) -> bool:
        """Evict the oldest of the largest accounts up to a class; False when that is `charged`."""
        accounts = next(found for found in self._accounts[largest::-1] if found)
        victim = next(iter(accounts))
        self.n_evicted += 1
        if victim is charged:
            return False
        victim.evict()
        # Removed even if the owner did not free its memory: `evict` is called once.
        self.release(victim)
        return True


def _nothing() -> None:
    """Do nothing; the `on_free` until a queue waits for memory."""
