"""Writes the log to standard error from a thread, so that a stalled reader blocks no other thread.

Any thread may log. The queue is bounded in bytes; lines without room, and lines that cannot be
written, are counted.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
from collections import deque

from fastderp.server.observe.values import Value
from fastderp.util.log_lines import escape_foreign

# About 10,000 lines.
LIMIT_BYTES = 1 << 20
# Seconds that `close` waits for the reader.
CLOSE_S = 1.0
_WRITE_BYTES = 1 << 16
_FORMAT = "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"


class LogQueue(logging.Handler):
    """Writes records to a descriptor from a dedicated thread."""

    def __init__(self, descriptor: int = 2, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Start the thread; `limit_bytes` bounds the queue. The descriptor stays open."""
        super().__init__()
        self.setFormatter(logging.Formatter(*_FORMAT))
        self.addFilter(escape_foreign)
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._n_lost = 0
        self._closing = False
        # Used by the thread only.
        self._n_lost_reported = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def metrics(self) -> dict[str, Value]:
        """Return how many lines were lost, by the name in the table of metrics."""
        return {"fastderp_log_lines_lost_total": self._n_lost}

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it as lost; never block."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._closing or self._queued_bytes + len(line) > self._limit_bytes:
                self._n_lost += 1
                return
            self._lines.append(line)
            self._queued_bytes += len(line)
            self._changed.notify()

    def close(self) -> None:
        """Write the queued lines for up to a second, and end the thread. Safe to repeat.

        A thread that a stalled reader blocks is left running until the process ends.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_S)
        super().close()

    # In the thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while lines := self._next():
            self._report_losses()
            self._write(lines)

    def _next(self) -> list[bytes]:
        """Wait for lines and return some; none when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing)
            lines, n_bytes = [], 0
            while self._lines and n_bytes < _WRITE_BYTES:
                lines.append(self._lines.popleft())
                n_bytes += len(lines[-1])
            self._queued_bytes -= n_bytes
            return lines

    def _report_losses(self) -> None:
        n_new = self._n_lost - self._n_lost_reported
        if n_new:
            report = {
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": f"{n_new} log lines were lost: standard error took them too slowly or not "
                "at all",
                "fields": {"event": "lost", "lines": n_new},
            }
            line = self.format(logging.makeLogRecord(report))
            if not self._write([line.encode() + b"\n"]):
                self._n_lost_reported += n_new

    def _write(self, lines: list[bytes]) -> int:
        """Write lines and return how many of them were lost."""
        rest = memoryview(b"".join(lines))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if error.errno == errno.EAGAIN:  # another process has made it non-blocking
                    _wait_writable(self._descriptor)
                    continue
                n_lost = bytes(rest).count(b"\n")
                with self._changed:
                    self._n_lost += n_lost
                return n_lost
        return 0


def _wait_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()
