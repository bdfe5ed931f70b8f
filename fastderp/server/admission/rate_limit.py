"""The rate at which a client may send. PROTOCOL §6.8. The data plane enforces it."""

from __future__ import annotations

from typing import Final

from fastderp.util import bounds
from fastderp.util.value import Value
from fastderp.wire.protocol import KEY_SIZE, MAX_PACKET_SIZE

# The cost of the largest frame: every burst must let it pass.
MIN_BURST_BYTES = KEY_SIZE + MAX_PACKET_SIZE


class RateLimit(Value):
    """The rate at which each client may send. PROTOCOL §6.8.

    Args:
        bytes_per_s: rate, 0 for no limit.
        burst_bytes: bytes at once after a pause, at least 65568 (the largest frame); 0: no limit.

    Raises TypeError for anything but whole numbers, ValueError for a negative one.
    """

    __match_args__: Final = ("bytes_per_s", "burst_bytes")
    __slots__ = __match_args__

    bytes_per_s: int
    burst_bytes: int

    def __init__(self, bytes_per_s: int = 0, burst_bytes: int = 0) -> None:
        bounds.RATE_BYTES.check_argument("bytes_per_s", bytes_per_s, whole=True)
        bounds.RATE_BYTES.check_argument("burst_bytes", burst_bytes, whole=True)
        burst_bytes = max(burst_bytes, MIN_BURST_BYTES) if bytes_per_s else 0
        self._set(bytes_per_s=bytes_per_s, burst_bytes=burst_bytes)

    def __str__(self) -> str:
        return (
            f"{self.bytes_per_s} bytes/s with bursts of {self.burst_bytes} bytes"
            if self.bytes_per_s
            else "no limit"
        )
