"""Texts of errors, for log lines and messages. Any thread."""

from __future__ import annotations

import os


def errno_text(error: BaseException) -> str:
    """Return the system's text for the number of an error; its own text if it has no number.

    asyncio writes addresses into `strerror`, and getaddrinfo uses separate numbers, below 0.
    """
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return own_text(error)


def own_text(error: BaseException) -> str:
    """Return an error's own text, without its number.

    For errors of this package's modules and of TLS libraries, which have numbers of their own.
    """
    return getattr(error, "strerror", None) or str(error)
