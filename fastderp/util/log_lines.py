"""Keeps text of remote peers from forging lines of the log or controlling a terminal. Any thread."""

from __future__ import annotations

import logging
import re

# Maximum of characters per line.
LINE_LIMIT_CHARACTERS = 1000

# Characters that a terminal or a log shipper could interpret: C0, DEL, C1, separators of lines and
# paragraphs, marks of writing direction, surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Formats no record; it has the standard format of tracebacks.
_FORMATTER = logging.Formatter()


def logger(name: str) -> logging.Logger:
    """Return a logger whose records are escaped for every handler."""
    # A logger's filter does not apply to its children, so each of our loggers gets the filter.
    found = logging.getLogger(name)
    found.addFilter(escape)
    return found


def log_line(text: str) -> str:
    """Return a text as one line of bounded length, control characters escaped."""
    if len(text) > LINE_LIMIT_CHARACTERS:
        text = text[:LINE_LIMIT_CHARACTERS] + "…"
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape(record: logging.LogRecord) -> bool:
    """Escape a record's message, and indent its traceback, which has lines of its own."""
    try:
        text = record.getMessage()
    except Exception as error:  # not one of ours; the code that logs must not fail
        text = f"{record.msg!r}, which cannot be formatted: {error}"
    record.msg, record.args = log_line(text), None
    if record.exc_info and record.exc_info[0] is not None:
        trace = _FORMATTER.formatException(record.exc_info)
        # Formatters use it instead of `exc_info`.
        record.exc_text = "\n".join("  " + log_line(line) for line in trace.splitlines())
    return True


def escape_foreign(record: logging.LogRecord) -> bool:
    """Escape a record, unless it has passed the filter of one of our loggers."""
    return escape in logging.getLogger(record.name).filters or escape(record)
