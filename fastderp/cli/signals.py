"""Handles the signals of `fastderp-relay` for the lifetime of the process.

| when | SIGTERM, SIGINT | SIGHUP |
|---|---|---|
| before `attach`, after `detach` | ends the process with 0 | is kept for `attach` |
| `attach` to `detach`, the first | ends the relay in order | reloads |
| `attach` to `detach`, the second | kills, even a hung process | does nothing |

One handler stays installed all the time: Python prints an error when a pending signal finds its
handler removed. Main thread only. Imports few modules, because it is imported first.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT)
# An orderly end takes up to 2 s for clients that do not read their close_notify, plus the time to
# close connections to other services.
LIMIT_S = 15.0


class Signals:
    """Calls the functions that the relay has attached, on its loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[int], None] | None = None
        self._reload: Callable[[], None] | None = None
        self._ending = False
        self._hung_up = False

    def settle(self) -> None:
        """Install the handler."""
        # SIGHUP first: a parent process may wait for the SIGTERM handler, then send either signal.
        for number in (signal.SIGHUP, *ENDING):
            signal.signal(number, self._handle)

    def attach(self, end: Callable[[int], None], reload: Callable[[], None]) -> None:
        """Call `end` on the running loop at the first SIGTERM or SIGINT, `reload` at SIGHUP.

        A SIGHUP that came earlier counts.
        """
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._end, self._reload = end, reload
        if self._hung_up:
            self._loop.call_soon(reload)

    def detach(self) -> None:
        """Stop calling either: the loop is ending."""
        self._loop = None
        self._end = self._reload = None

    def leave(self, exit_code: int) -> NoReturn:
        """End the process now. Python's exit first restores SIGHUP's default, which kills it."""
        faulthandler.cancel_dump_traceback_later()
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105 - contextlib is not needed otherwise
                stream.flush()
            except (OSError, ValueError):  # the reader or the stream is closed
                pass
        os._exit(exit_code)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True
            if self._loop is not None and self._reload is not None and not self._ending:
                self._loop.call_soon_threadsafe(self._reload)
        elif self._ending:  # the second signal came before the first had restored the default
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._loop is None or self._end is None:
            os._exit(0)
        else:
            self._ending = True
            self._loop.call_soon_threadsafe(self._end, number)
            self._let_the_next_kill()

    def _let_the_next_kill(self) -> None:
        """Restore the next signal's default, and set a time limit: both work when Python hangs.

        After LIMIT_S the process prints the stack of every thread and ends with 1.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=_unblocked_stderr())


def _unblocked_stderr() -> int:
    """Return a non-blocking descriptor for standard error, or 2 when it cannot be opened again.

    O_NONBLOCK on descriptor 2 itself would change the terminal for the shell, too.
    """
    try:
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:  # a socket, or opened by another user
        return 2


SIGNALS = Signals()
