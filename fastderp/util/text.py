"""Text of strangers and operators, made fit for a terminal and a log."""

from __future__ import annotations

_LIMIT_CHARACTERS = 80


def printable(text: str) -> str:
    """Return a text on one line of up to 80 characters, everything escaped that is not printable ASCII."""
    escaped = text.encode("unicode_escape").decode()
    return (
        escaped if len(escaped) <= _LIMIT_CHARACTERS else escaped[: _LIMIT_CHARACTERS - 3] + "..."
    )
