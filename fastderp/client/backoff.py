"""Schedules reconnects: back-off with jitter, and the times of a restarting relay (PROTOCOL §4).

Belongs to the client's event loop; `clock` and `random` can be a test's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fastderp.wire.messages import ServerRestarting

# The end of a connection of this duration does not count as a further failure.
STABLE_S = 10.0
# Limit for the pause, and for the time of quick attempts, that a relay may request.
RESTART_LIMIT_S = 300.0
# Interval of attempts while a relay restarts, since its announcement promises its return.
RESTART_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """The waits before a relay is dialled again. PROTOCOL §13.

    The wait before the first attempt after a connection was lost is random, up to `first_s`
    seconds, so that a relay's clients do not return all at once. Each further failure doubles it,
    up to `limit_s` seconds; then a random part of up to half is subtracted.
    """

    first_s: float = 0.25
    limit_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise ValueError for times out of order or below 0."""
        if not 0 <= self.first_s <= self.limit_s:
            raise ValueError(
                "first_s must be between 0 and limit_s, "
                f"not {self.first_s:g} with limit_s {self.limit_s:g}"
            )


DEFAULT_BACKOFF = Backoff()


class RetrySchedule:
    """Counts failures and computes the time of the next attempt."""

    __slots__ = (
        "_backoff",
        "_clock",
        "_connected_s",
        "_n_failures",
        "_not_before_s",
        "_quick_until_s",
    )

    def __init__(self, backoff: Backoff, clock: Callable[[], float]) -> None:
        """Begin without failures; `clock` returns seconds."""
        self._backoff = backoff
        self._clock = clock
        self._n_failures = 0
        self._connected_s = 0.0
        self._not_before_s = 0.0
        self._quick_until_s = 0.0

    def wait_s(self) -> float:
        """Return the seconds until the next attempt may begin."""
        return max(0.0, self._not_before_s - self._clock())

    def connected(self) -> None:
        """Note that the relay accepted the login."""
        self._connected_s = self._clock()

    def restarting(self, message: ServerRestarting) -> None:
        """Note the times that a restarting relay announces."""
        wait_s = min(message.reconnect_in_s, RESTART_LIMIT_S)
        self._not_before_s = self._clock() + wait_s
        self._quick_until_s = self._not_before_s + min(message.try_for_s, RESTART_LIMIT_S)

    def failed(self, *, was_connected: bool) -> None:
        """Note the end of a connection that `was_connected`, or of an attempt."""
        now_s = self._clock()
        if was_connected and now_s - self._connected_s >= STABLE_S:
            self._n_failures = 0
        self._n_failures += 1
        backoff = self._backoff
        if self._n_failures == 1:
            wait_s = random.uniform(0, backoff.first_s)
        else:
            # The bound keeps the exponent within a float's range.
            wait_s = backoff.first_s * 2.0 ** min(self._n_failures - 2, 60)
            limit_s = backoff.limit_s
            if now_s < self._quick_until_s:
                limit_s = min(limit_s, RESTART_RETRY_S)
            wait_s = min(wait_s, limit_s) * random.uniform(0.5, 1.0)
        self._not_before_s = max(self._not_before_s, now_s + wait_s)
