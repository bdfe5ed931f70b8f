"""Log lines that anyone on the internet can cause: the first of a kind at once, the rest as a number. Loop thread only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

WINDOW_S = 10.0


class Summariser:
    """Logs at most one line per kind and window; the next one says how many were held back."""

    def __init__(
        self,
        log: logging.Logger,
        *,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Log to `log` at level INFO."""
        self._log = log
        self._window_s = window_s
        self._clock = clock
        # kind -> (when its last line was written, how many were held back since); kinds are few and ours
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def say(self, kind: Hashable, message: str, *args: object) -> None:
        """Log the message unless one of its kind was logged within the window."""
        now = self._clock()
        last, n_held = self._kinds.get(kind, (now - self._window_s, 0))
        if now - last < self._window_s:
            self._kinds[kind] = (last, n_held + 1)
            return
        self._kinds[kind] = (now, 0)
        if n_held:
            message += " (and %d more like it since the last such line)"
            args = (*args, n_held)
        self._log.info(message, *args)
