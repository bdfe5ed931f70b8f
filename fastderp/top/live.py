"""The live view: a thread asks the relay, and the main thread draws and reads keys."""

from __future__ import annotations

import signal
import threading

from fastderp.errors import EX_IOERR, EX_OK
from fastderp.top.terminal import Terminal
from fastderp.top.view import SORTS, Sort, screen
from fastderp.top.watch import Watch

_QUIT = "q\x03\x04"


def run(watch: Watch, interval_s: float, sort: Sort, n_rows: int | None) -> int:
    """Show a relay until a key or a signal ends it; return the exit code.

    When the relay stops answering, it is tried again. `watch` belongs to the view from here on.
    """
    ended = threading.Event()
    sort_of_key = {one.key: one for one in SORTS}
    try:
        with Terminal() as terminal:

            def ask() -> None:
                while not ended.wait(interval_s):
                    watch.try_ask()
                    terminal.wake()

            threading.Thread(target=ask, daemon=True).start()
            while True:
                size = terminal.size
                terminal.draw(screen(watch.state, sort, *size, n_rows), size)
                events = terminal.wait()
                for number in (signal.SIGTERM, signal.SIGHUP):
                    if number in events.signals:
                        return 128 + number
                if signal.SIGINT in events.signals or events.is_gone:
                    return EX_OK
                if signal.SIGTSTP in events.signals:
                    terminal.suspend()
                for key in events.keys:
                    if key in _QUIT:
                        return EX_OK
                    sort = sort_of_key.get(key, sort)
    except OSError:  # the terminal is gone
        return EX_IOERR
    finally:
        ended.set()
