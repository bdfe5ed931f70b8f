"""The bounds of every number that an operator sets, from the kernel and our clocks.

The command line checks flags with them, `Server` its arguments.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple


class Bounds(NamedTuple):
    """The lowest and the highest allowed value.

    unit is "", "s" for seconds or "B" for bytes. With allows_none, 0 is also allowed and means
    never.
    """

    low: float
    high: float
    unit: str = ""
    allows_none: bool = False

    def check(self, value: float) -> None:
        """Raise ValueError that names the bounds."""
        if not (self.low <= value <= self.high or (self.allows_none and value == 0)):
            raise ValueError(f"want {self}")

    def check_argument(self, name: str, value: float, *, whole: bool = False) -> None:
        """Raise ValueError that names an argument of the library, and its value.

        Raises TypeError for anything but a number, or but a `whole` number.
        """
        if not isinstance(value, int if whole else int | float):
            wanted = "whole number" if whole else "number"
            raise TypeError(f"{name} must be a {wanted}, not {type(value).__name__}")
        try:
            self.check(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}, not {value}") from None

    def __str__(self) -> str:
        none = "0 or " if self.allows_none and self.low > 0 else ""
        if math.isinf(self.high):
            return f"{none}{self._text(self.low)} or more"
        return f"{none}{self._text(self.low)} to {self._text(self.high)}"

    def _text(self, value: float) -> str:
        if self.unit == "B":
            return f"{int(value) >> 20}MiB" if value < 1 << 30 else f"{int(value) >> 30}GiB"
        if self.unit != "s" or value == 0:
            return str(value)
        for unit, seconds in (("h", 3600), ("m", 60), ("s", 1)):
            if value % seconds == 0:
                return f"{value / seconds:.0f}{unit}"
        return f"{value * 1000:.0f}ms" if value < 1 else f"{value:g}s"


# The timers of the event loop and the data plane allow more; a time above a year is an error.
_YEAR_S: Final = 365 * 24 * 3600.0

PORT: Final = Bounds(0, 65535)
WORKERS: Final = Bounds(0, 256)
WRITE_TIMEOUT: Final = Bounds(0, _YEAR_S, "s")
# TCP_USER_TIMEOUT is a C int of milliseconds.
USER_TIMEOUT: Final = Bounds(0, 596 * 3600.0, "s")
# TCP_KEEPIDLE: MAX_TCP_KEEPIDLE of the kernel.
KEEPALIVE: Final = Bounds(0, 32767.0, "s")
RECHECK: Final = Bounds(0.01, _YEAR_S, "s", allows_none=True)
LOGIN_TIMEOUT: Final = Bounds(0.001, _YEAR_S, "s")
DRAIN: Final = Bounds(0, 3600.0, "s")
IDLE: Final = Bounds(0, _YEAR_S, "s")
ACCEPTS_PER_S: Final = Bounds(0, math.inf)
# The maximum of Go's int, derper's default.
ACCEPT_BURST: Final = Bounds(0, 2**63 - 1)
# More than any machine holds.
ADDRESS_CONNECTIONS: Final = Bounds(0, 1_000_000)
ADDRESS_LOGINS: Final = Bounds(0, 1_000_000)
ADDRESS_BURST: Final = Bounds(1, 1_000_000)
# For programs, which have no other limit.
NOT_NEGATIVE: Final = Bounds(0, math.inf)
POSITIVE: Final = Bounds(1, math.inf)
# A uint64_t in the data plane, as in derper's file.
RATE_BYTES: Final = Bounds(0, 2**64 - 1)
# A uint32_t in the data plane.
QUEUE_PACKETS: Final = Bounds(0, 2**32 - 1)
# The minimum holds a few TLS handshakes; the maximum is more than any machine needs.
LOGIN_MEMORY: Final = Bounds(4 << 20, 64 << 30, "B")
LOGIN_MEMORY_BYTES: Final = 64 << 20  # the default
# A uint32 of milliseconds in a Restarting frame.
RESTART: Final = Bounds(0, 1193 * 3600.0, "s")
