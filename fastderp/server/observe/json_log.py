"""Formats the log of `-log-format json`: each record is one line with one JSON object.

A record's message is that of the text format; its other members are the dictionary `fields` that
the logging code gives in `extra=`. Loaded only when needed. Any thread.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

from fastderp.util.log_lines import log_line
from fastderp.util.standard_streams import print_error

log: logging.Logger = logging.getLogger("fastderp")

# ASCII only: no character can end a line or control a terminal.
_encode = json.JSONEncoder(check_circular=False, separators=(",", ":"), default=str).encode


class JsonFormatter(logging.Formatter):
    """Makes a line of a record: time, level, message, the fields with a value, traceback."""

    def __init__(self) -> None:
        super().__init__()
        # A Unix time in seconds and its text: most records share theirs with the previous one.
        self._second = (0, "1970-01-01T00:00:00")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object in ASCII."""
        members: dict[str, object] = {
            "time": f"{self._second_text(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            if value is not None and value != "":
                members[name] = log_line(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            members["traceback"] = self.formatException(record.exc_info)
        return _encode(members)

    def _second_text(self, unix_s: int) -> str:
        second = self._second
        if second[0] != unix_s:
            second = unix_s, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))
            self._second = second
        return second[1]


def attach(handler: logging.Handler) -> None:
    """Give the handler each record of the process, as JSON, and what Python itself would print."""
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _print("internal error", exc_info=error)
    threading.excepthook = lambda failure: log.error(
        "internal error in a thread", exc_info=failure.exc_value
    )
    sys.unraisablehook = lambda failure: log.error(
        "internal error: %s", failure.err_msg or "exception ignored", exc_info=failure.exc_value
    )


def refuse(text: str, exit_code: int) -> int:
    """Print why the relay cannot run, and return the exit code."""
    _print(f"fastderp-relay: {log_line(text)}", event="failed", exit_code=exit_code)
    return exit_code


def _print(message: str, exc_info: BaseException | None = None, **fields: object) -> None:
    """Print an error after the end of the log's queue."""
    trace = (type(exc_info), exc_info, exc_info.__traceback__) if exc_info is not None else None
    record = logging.LogRecord(log.name, logging.ERROR, "", 0, message, None, trace)
    record.fields = fields
    print_error(JsonFormatter().format(record))
