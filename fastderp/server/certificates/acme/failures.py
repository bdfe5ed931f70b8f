"""Stores failed orders, and the delay before the next, in -certdir (PROTOCOL §10).

Loop thread only.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from fastderp.util import files

FILE_NAME = "acme-failures.json"

RETRY_FIRST_S = 60.0
RETRY_MAX_S = 1800.0


class Failures:
    """Counts the failures of each name: the next order comes after 1 min, doubling up to 30 min.

    Times are wall-clock times, because monotonic clocks end with the process. A wait above the
    maximum means that the clock was changed; it counts as over.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Continue with the content of the file at `path`; a malformed one counts as empty."""
        self._path = path
        self._clock = clock
        self._of: dict[str, tuple[int, float]] = {}
        with contextlib.suppress(
            OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError
        ):
            for name, (n, retry_at) in json.loads(files.read(path)).items():
                if abs(retry_at - clock()) <= RETRY_MAX_S:
                    self._of[name] = (int(n), float(retry_at))

    def wait_s(self, name: str) -> float:
        """Return the seconds before the next order for a name, 0 when it may be ordered."""
        _, retry_at = self._of.get(name, (0, 0.0))
        remaining = retry_at - self._clock()
        return remaining if 0 < remaining <= RETRY_MAX_S else 0.0

    def add(self, name: str, *, rate_limited: bool = False) -> float:
        """Note a failure and return the delay, the longest one after a rate limit of the CA."""
        n = self._of.get(name, (0, 0.0))[0] + 1
        wait_s = (
            RETRY_MAX_S if rate_limited else min(RETRY_FIRST_S * 2 ** min(n - 1, 10), RETRY_MAX_S)
        )
        self._of[name] = (n, self._clock() + wait_s)
        self._save()
        return wait_s

    def clear(self, name: str) -> None:
        """Forget the failures of a name that got its certificate."""
        if self._of.pop(name, None) is not None:
            self._save()

    def forgive(self) -> set[str]:
        """Allow an order for every name; return the names that were delayed."""
        forgiven = set(self._of)
        self._of.clear()
        if forgiven:
            self._save()
        return forgiven

    def _save(self) -> None:
        # Without the file (disk full) the relay only orders earlier after a restart.
        with contextlib.suppress(OSError):
            files.write_atomic(self._path, json.dumps(self._of).encode())
