"""The system's text for an error, for log lines and messages. Any thread."""

from __future__ import annotations

import os


def errno_text(error: BaseException) -> str:
    """Return the system's text for the number of an error; its own text if it has no number.

    asyncio writes addresses into `strerror`, and getaddrinfo uses separate numbers, below 0.
    """
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error)
