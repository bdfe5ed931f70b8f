"""Limits the lines and characters that remote peers can cause in the log.

Loop thread only.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Hashable

WINDOW_S = 10.0
# Maximum of characters per line.
LINE_LIMIT_CHARACTERS = 1000

# Characters that a terminal or a log shipper could interpret: C0, DEL, C1, separators of lines and
# paragraphs, marks of writing direction, surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def one_line(text: str) -> str:
    """Return a text as one line of bounded length, control characters escaped."""
    if len(text) > LINE_LIMIT_CHARACTERS:
        text = text[:LINE_LIMIT_CHARACTERS] + "…"
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _keep_to_one_line(record: logging.LogRecord) -> bool:
    """Escape a record's message but not its traceback."""
    record.msg, record.args = one_line(record.getMessage()), None
    return True


# A logger's filter does not apply to its children, so each of our loggers gets the filter.
for _name in ("fastderp", "fastderp.client", "fastderp.stun", "fastderp.websocket"):
    logging.getLogger(_name).addFilter(_keep_to_one_line)


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

    def log(self, kind: Hashable, message: str, *args: object) -> None:
        """Log the message unless enough of its kind was logged within the window."""
        suffix = self.suffix(kind)
        if suffix is not None:
            self._log.info(message + "%s", *args, suffix)

    def suffix(self, kind: Hashable) -> str | None:
        """Return the suffix of a line of this kind, mostly ""; None to hold the line back."""
        if self._log.isEnabledFor(logging.DEBUG):
            return ""
        now_s = self._clock()
        window = self._windows.get(kind)
        if window is None or now_s - window.since_s >= self._window_s:
            self._windows[kind] = _Window(now_s)
            return (
                f" (and {window.n_held} more like it since the last such line)"
                if window and window.n_held
                else ""
            )
        if window.n_logged < self._lines:
            window.n_logged += 1
            return ""
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
