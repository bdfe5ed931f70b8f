"""The terminal of the live view: an alternate screen, single keys, and signals as events.

Main thread only, except for `wake`. rich, of the extra `top`, writes the escape sequences.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from fastderp.top.view import Line, Style
from fastderp.util.extras import MissingExtra

try:
    from rich.console import Console
    from rich.control import Control
    from rich.text import Text
except ImportError:
    raise MissingExtra("top", "live views (not -once)") from None

_STYLES: dict[Style, str] = {
    "": "",
    "title": "bold",
    "label": "dim",
    "warning": "yellow",
    "error": "bold red",
    "heading": "reverse",
    "sorted": "bold reverse",
    "help": "dim",
}
# These end the view, redraw it, or suspend it.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)
_SIZE = (80, 24)  # of a terminal that does not know its own
_WOKEN = 0


class Events(NamedTuple):
    """What has happened: the keys that were pressed, and the numbers of signals.

    `is_gone` when the terminal will send no more keys.
    """

    keys: str
    signals: frozenset[int]
    is_gone: bool


class Terminal:
    """Standard input and output as a screen, from the begin to the end of a `with` block.

    The terminal is as before after the block, however that ends.
    """

    def __init__(self) -> None:
        self._console = Console(
            file=sys.stdout, force_terminal=True, markup=False, highlight=False, emoji=False
        )
        self._input = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else None
        self._output = sys.stdout.fileno()
        self._used = contextlib.ExitStack()
        self._alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Terminal:
        for number in _SIGNALS:
            signal.signal(number, _ignore)
        signal.set_wakeup_fd(self._alarm[1], warn_on_full_buffer=False)
        self._use()
        return self

    def __exit__(self, *_: object) -> None:
        # The handlers stay: a late signal must not end the process with a changed terminal.
        self._used.close()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        columns, lines = os.get_terminal_size(self._output)
        return columns or _SIZE[0], lines or _SIZE[1]

    def draw(self, lines: Sequence[Line], size: tuple[int, int]) -> None:
        """Show lines that fill a screen of this size. Raises OSError when it is gone."""
        width, height = size
        self._console.size = (width, height)
        text = Text("\n", no_wrap=True).join(
            Text.assemble(*((part.text, _STYLES[part.style]) for part in line)) for line in lines
        )
        with self._console:  # one write
            self._console.control(Control.home())
            self._screen.update(text)

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: it will return
            os.write(self._alarm[1], bytes([_WOKEN]))

    def wait(self) -> Events:
        """Wait for a key, a signal or `wake`."""
        sources = [self._alarm[0]] if self._input is None else [self._alarm[0], self._input]
        ready, _, _ = select.select(sources, [], [])
        numbers = os.read(self._alarm[0], 1024) if self._alarm[0] in ready else b""
        keys, is_gone = "", False
        if self._input in ready:
            try:
                data = os.read(self._input, 1024)
            except OSError:
                data = b""
            keys, is_gone = data.decode("ascii", "replace"), not data
        return Events(keys, frozenset(numbers) - {_WOKEN}, is_gone)

    def suspend(self) -> None:
        """Stop the process, as the key Ctrl-Z does, and go on when the shell continues it."""
        self._used.close()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _ignore)
        self._use()

    def _use(self) -> None:
        if self._input is not None:
            settings = termios.tcgetattr(self._input)
            self._used.callback(_restore, self._input, settings)
            tty.setcbreak(self._input, termios.TCSANOW)
        self._used.callback(self._leave_screen)
        self._screen = self._console.screen()
        self._screen.__enter__()

    def _leave_screen(self) -> None:
        with contextlib.suppress(OSError):  # it is gone
            self._screen.__exit__(None, None, None)
            sys.stdout.flush()


def _restore(descriptor: int, settings: list[Any]) -> None:
    with contextlib.suppress(termios.error):  # it is gone
        termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Handle a signal: its number is on its way to `Terminal.wait`."""
