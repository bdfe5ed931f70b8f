"""A command in a pseudo-terminal, and the text on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE_S = 20.0
_HOME = b"\x1b[H"
_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


class Screen:
    """The terminal of a command that draws whole screens, each from the upper left corner."""

    def __init__(self, descriptor: int, inside: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.output = b""
        """All bytes that the command has written."""
        self._descriptor = descriptor
        self._inside = inside
        self._columns, self._lines = os.get_terminal_size(inside)

    @property
    def settings(self) -> list[Any]:
        """The terminal's settings now."""
        return termios.tcgetattr(self._inside)

    @property
    def text(self) -> str:
        """The last whole screen in the terminal's size, without colours; "" if there is none."""
        for drawn in reversed(self.output.split(_HOME)):
            # The last one may end within a character.
            text = _SEQUENCE.sub(b"", drawn).decode(errors="replace")
            lines = text.splitlines()
            if len(lines) == self._lines and len(lines[-1]) == self._columns:
                return text
        return ""

    def press(self, keys: str) -> None:
        """Send keys."""
        os.write(self._descriptor, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, which the kernel signals to the command."""
        _set_size(self._descriptor, columns, lines)
        self._columns, self._lines = columns, lines

    def shows(self, condition: str | Callable[[str], bool]) -> str:
        """Wait until the screen has a text, or meets a condition; return the screen."""
        holds = condition if callable(condition) else lambda text: condition in text
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds(self.text):
            assert self._read(deadline_s - time.monotonic()), self.text
        return self.text

    def end(self) -> int:
        """Read to the end of the command; return its exit code."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            self._read(0.1)
            assert time.monotonic() < deadline_s, self.text
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._descriptor], [], [], max(0.0, timeout_s))[0]:
            return False
        data = os.read(self._descriptor, 65536)
        self.output += data
        return bool(data)


@contextlib.contextmanager
def on_screen(
    command: list[str], columns: int = 80, lines: int = 24, env: dict[str, str] | None = None
) -> Iterator[Screen]:
    """Run a command in a terminal of its own until the block ends."""
    outside, inside = os.openpty()
    _set_size(outside, columns, lines)
    process = subprocess.Popen(
        command,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "TERM": "xterm-256color", **(env or {})},
    )
    try:
        yield Screen(outside, inside, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(inside)
        os.close(outside)


def _set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
