"""The rate at which a client may send. PROTOCOL §6.8. The data plane enforces it."""

from __future__ import annotations

from dataclasses import dataclass

from fastderp.wire.protocol import KEY_SIZE, MAX_PACKET_SIZE

# The cost of the largest frame: every burst must let it pass.
MIN_BURST_BYTES = KEY_SIZE + MAX_PACKET_SIZE


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The rate at which each client may send. PROTOCOL §6.8.

    Args:
        bytes_per_s: rate, 0 for no limit.
        burst_bytes: bytes at once after a pause, at least 65568 (the largest frame); 0: no limit.
    """

    bytes_per_s: int = 0
    burst_bytes: int = 0

    def __post_init__(self) -> None:
        burst_bytes = max(self.burst_bytes, MIN_BURST_BYTES) if self.bytes_per_s else 0
        object.__setattr__(self, "burst_bytes", burst_bytes)

    def __str__(self) -> str:
        return (
            f"{self.bytes_per_s} bytes/s with bursts of {self.burst_bytes} bytes"
            if self.bytes_per_s
            else "no limit"
        )
