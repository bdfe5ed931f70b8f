"""A token bucket: the one rate limiter of the control plane and the client."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class TokenBucket:
    """A budget that refills steadily up to a burst and starts full.

    Args:
        per_s: tokens (bytes, connections, requests) per second; infinite for no limit.
        burst: maximum of tokens at once.
        clock: seconds, monotonic.
    """

    __slots__ = ("_at_s", "_burst", "_clock", "_per_s", "_tokens")

    def __init__(
        self, per_s: float, burst: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._clock = clock
        self._at_s = clock()

    @property
    def is_full(self) -> bool:
        """Whether the bucket is full, like a new one."""
        return self._refilled() >= self._burst

    def take(self, n: float = 1) -> bool:
        """Take `n` tokens if the bucket has them; return whether it had."""
        if self._refilled() < n:
            return False
        self._tokens -= n
        return True

    def overdraw(self, n: float) -> float:
        """Take `n` tokens, below zero if necessary; return the seconds until zero again."""
        tokens = self._refilled() - n
        self._tokens = tokens
        return max(0.0, -tokens / self._per_s)

    def _refilled(self) -> float:
        if math.isinf(self._per_s):
            return math.inf
        now_s = self._clock()
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return self._tokens
