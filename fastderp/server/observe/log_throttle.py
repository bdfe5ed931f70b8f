"""Limits the lines that remote peers can cause in the log.

Loop thread only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

WINDOW_S = 10.0


def more_text(n_held: int) -> str:
    """Return the end of a line before which others like it were held back; "" for none."""
    return f" (and {n_held} more like it since the last such line)" if n_held else ""


class _Window:
    __slots__ = ("n_held", "n_logged", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.n_logged = 1
        self.n_held = 0


class LogThrottle:
    """Logs a few lines per kind and window; the next window's first line counts those held back.

    Args:
        log: takes the lines, at level INFO; while it takes DEBUG, too, nothing is held back.
        lines: how many per kind and window.
        window_s: seconds.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        lines: int = 1,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._lines = lines
        self._window_s = window_s
        self._clock = clock
        # Few kinds exist, because peers do not choose them.
        self._windows: dict[Hashable, _Window] = {}

    def log(self, kind: Hashable, message: str, /, *args: object, **fields: object) -> None:
        """Log the message unless enough of its kind was logged within the window.

        fields: the values of the event, for `-log-format json`.
        """
        n_held = self.n_held(kind)
        if n_held is not None:
            fields["more"] = n_held or None
            self._log.info(message + "%s", *args, more_text(n_held), extra={"fields": fields})

    def n_held(self, kind: Hashable) -> int | None:
        """Return how many lines were held back before one of this kind, or None to hold it back."""
        if self._log.isEnabledFor(logging.DEBUG):
            return 0
        now_s = self._clock()
        window = self._windows.get(kind)
        if window is None or now_s - window.since_s >= self._window_s:
            self._windows[kind] = _Window(now_s)
            return window.n_held if window else 0
        if window.n_logged < self._lines:
            window.n_logged += 1
            return 0
        window.n_held += 1
        return None

    def take_held(self, min_age_s: float = 0.0) -> dict[Hashable, int]:
        """Remove and return, by kind, the lines held back in windows older than `min_age_s`."""
        before_s = self._clock() - min_age_s
        held = {}
        for kind, window in self._windows.items():
            if window.n_held and window.since_s <= before_s:
                held[kind], window.n_held = window.n_held, 0
        return held
