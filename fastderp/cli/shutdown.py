"""How the command ends: the first SIGTERM or SIGINT begins it in order; the second one, or too long a time, ends it whatever hangs.

Neither needs the loop, or Python, to be alive.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# An orderly end takes 2 s at most for clients that do not take their goodbye, and some for connections to others.
LIMIT_S = 15.0


def begin_on_signal(begin: Callable[[signal.Signals], None]) -> None:
    """Call `begin` on the running loop with the first signal.

    From then on a signal kills the process, and after LIMIT_S it writes where every thread hangs and exits with 1, unless
    `ended` is called before.
    """
    loop = asyncio.get_running_loop()

    def first(number: signal.Signals) -> None:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        begin(number)
        # By its number: sys.stderr may be anything, or nothing.
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=2)

    for number in SIGNALS:
        loop.add_signal_handler(number, first, number)


def ended() -> None:
    """Note that nothing has hung."""
    faulthandler.cancel_dump_traceback_later()
