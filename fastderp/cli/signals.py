"""Handles the signals of `fastderp-relay` for the lifetime of the process.

| when | SIGTERM | SIGINT | SIGHUP |
|---|---|---|---|
| before `attach`, after `detach` | ends the process with 0 | the same | is kept for `attach` |
| `attach` to `detach` | drains the relay, then closes it | closes it | reloads |
| while it drains | ends the drain | the same | does nothing |
| while it closes | kills, even a hung process | the same | does nothing |

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
# of a container
_IS_PROCESS_1 = os.getpid() == 1
if _IS_PROCESS_1:
    from fastderp.cli.process_1 import exit_at


class Signals:
    """Calls the functions that the relay has attached, on its loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[int], None] | None = None
        self._reload: Callable[[], None] | None = None
        self._drain_s = 0.0
        self._draining = False
        self._closing = False
        self._hung_up = False

    def settle(self) -> None:
        """Install the handler."""
        # SIGHUP first: a parent process may wait for a SIGTERM handler, then send either signal.
        signal.signal(signal.SIGHUP, self._handle)
        # A signal that arrives meanwhile waits for our handler.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
            faulthandler.register(number, file=2)  # stores the default, for _kill_at
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def remove(self) -> None:
        """Let the next signal end the process at once, for a command without a relay."""
        for number in (signal.SIGHUP, *ENDING):
            if _IS_PROCESS_1:
                exit_at(number)
            else:
                signal.signal(number, signal.SIG_DFL)

    def attach(
        self, end: Callable[[int], None], reload: Callable[[], None], drain_s: float
    ) -> None:
        """Call `end` on the running loop at SIGTERM and SIGINT, `reload` at SIGHUP.

        `end` is called again with the signal that ends a drain, which takes up to `drain_s`. A
        SIGHUP that came earlier counts.
        """
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._end, self._reload, self._drain_s = end, reload, drain_s
        if self._hung_up:
            self._loop.call_soon(reload)

    def close(self) -> None:
        """Note that the relay closes: the next signal kills it, as does LIMIT_S."""
        self._closing = True
        self._let_the_next_kill()

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
            except (OSError, ValueError, AttributeError):  # the reader or the stream is closed
                pass
        os._exit(exit_code)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True
            ending = self._draining or self._closing
            if self._loop is not None and self._reload is not None and not ending:
                self._loop.call_soon_threadsafe(self._reload)
        elif self._closing:  # it came before _kill_at
            _kill_at(number)
            signal.raise_signal(number)
        elif self._loop is None or self._end is None:
            os._exit(0)
        elif number == signal.SIGTERM and self._drain_s and not self._draining:
            self._draining = True
            self._loop.call_soon_threadsafe(self._end, number)
            self._limit(self._drain_s + LIMIT_S)
        else:
            self._closing = True
            self._loop.call_soon_threadsafe(self._end, number)
            self._let_the_next_kill()

    def _let_the_next_kill(self) -> None:
        """Have the next signal kill the process, and set a time limit.

        Both work when Python hangs.
        """
        for number in ENDING:
            _kill_at(number)
        self._limit(LIMIT_S)

    def _limit(self, seconds: float) -> None:
        """Have the process print the stack of every thread and end with 1 after this time."""
        try:
            faulthandler.dump_traceback_later(seconds, exit=True, file=_unblocked_stderr())
        except RuntimeError:  # it needs a thread, and the system has none left
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)


def _kill_at(number: int) -> None:
    """Have the process end at this signal without Python, whose handler stays for a pending one.

    `signal.signal` would remove the handler, and `ctypes` takes 0.3 MiB.
    """
    if _IS_PROCESS_1:
        exit_at(number)
    else:
        faulthandler.unregister(number)  # restores the default


def _unblocked_stderr() -> int:
    """Return a non-blocking descriptor for standard error, or 2 when it cannot be opened again.

    O_NONBLOCK on descriptor 2 itself would change the terminal for the shell, too.
    """
    try:
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC)
    except OSError:  # a socket, or opened by another user
        return 2


SIGNALS = Signals()
