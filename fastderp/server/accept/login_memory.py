"""The memory that connections of a relay may hold together before their login. ARCHITECTURE §2, RELIABILITY F31.

Loop thread only.
"""

from __future__ import annotations

RESERVE_LIMIT_BYTES = 16 * 1024 * 1024


class LoginMemory:
    """A budget of bytes: what does not fit is refused."""

    def __init__(self) -> None:
        self.reserved_bytes = 0

    def reserve(self, n_bytes: int) -> bool:
        """Take `n_bytes` out of the budget; False when they are not there."""
        if self.reserved_bytes + n_bytes > RESERVE_LIMIT_BYTES:
            return False
        self.reserved_bytes += n_bytes
        return True

    def unreserve(self, n_bytes: int) -> None:
        """Give back what `reserve` gave."""
        self.reserved_bytes -= n_bytes
