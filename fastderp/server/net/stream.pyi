"""Non-blocking stream sockets on the event loop, for connections outside the data plane."""

import asyncio
import socket
from collections.abc import Callable

READ_BYTES: int
"""Maximum of bytes per read."""
BUSY_EVENTS: int
"""This many sockets ready at once count as a storm."""
SLICE_S: float
"""Limit in seconds for the streams of one iteration of the loop."""

def accept(listening: int) -> tuple[int, tuple[str, int]] | None:
    """Accept a connection; return its descriptor and its peer's (ip, port); None without one.

    The peer of a unix socket has no name: ("", 0). Raises OSError.
    """

def has_waiting(listening: int) -> bool:
    """Whether a connection waits: an `accept` that finds none costs ten times as much as this."""

def kernel_cause(error: int) -> tuple[str, str]:
    """Return reason and detail of a connection that the kernel has ended with an error number.

    They are those of a session that ends with it.
    """

class Poller:
    """Notifies streams that their sockets are ready, with an epoll that the loop watches.

    The loop's `add_reader` is not used for streams: uvloop (libuv) stops reporting a descriptor at
    the first EPOLLERR, with the error and the data before it unread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch through `loop` until `close`. Raises OSError without descriptors."""

    @property
    def is_busy(self) -> bool:
        """Whether many sockets were ready at the last poll."""

    def close(self) -> None:
        """Stop watching."""

class Stream:
    """Calls back with received bytes; sends as much as the socket accepts and keeps the rest.

    Calls `on_bytes(data)` for input, `on_end(error)` once, with None at the end of input, and
    `on_drained()` when the kept output is sent; calls nothing after `close` or `detach`.
    """

    on_bytes: Callable[[bytes], None]
    on_end: Callable[[OSError | None], None]
    on_drained: Callable[[], None]
    read_bytes: int
    """Maximum of bytes per turn, up to READ_BYTES; a connection may lower it for shorter turns."""

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket | int,
        on_bytes: Callable[[bytes], None],
        on_end: Callable[[OSError | None], None],
        on_drained: Callable[[], None],
    ) -> None:
        """Take over a connected socket or descriptor; reading begins with `start` or `resume`."""

    @property
    def closed(self) -> bool:
        """Whether the socket is closed or detached."""

    @property
    def silent_s(self) -> float:
        """Seconds that it has waited for the peer to send, or to read; 0 while it is paused."""

    @property
    def n_unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""

    @property
    def local_ip(self) -> str:
        """The address that the peer has connected to; "" when the socket is closed."""

    @property
    def flushed(self) -> bool:
        """Whether everything sent has reached the kernel."""

    def round_trip_us(self) -> int | None:
        """Return the kernel's smoothed round-trip time in microseconds.

        Returns None unless it is an open TCP socket.
        """

    def bytes_moved(self) -> tuple[int, int] | None:
        """Return how many bytes the kernel has sent and received.

        Returns None unless it is an open TCP socket.
        """

    def limit_kernel(self, unsent_bytes: int, near_receive_bytes: int, near_us: int) -> None:
        """Bound the kernel's queues: unsent output, and unread input of peers within near_us.

        A peer further away needs the receive buffer that the kernel chooses. Does nothing unless
        the socket is TCP.
        """

    def start(self) -> None:
        """Read what has arrived, and from now on; watch the socket only if it is still open."""

    def resume(self) -> None:
        """Read from now on."""

    def pause(self) -> None:
        """Leave input in the kernel until `resume`."""

    def send(self, data: bytes) -> bool:
        """Send; return whether the socket took everything, otherwise `on_drained` follows.

        An error shows when reading.
        """

    def end_output(self) -> None:
        """Send the end of the stream to the peer; call when flushed."""

    def detach(self) -> int:
        """Give up the descriptor and return it; call when flushed.

        Unread input stays in the kernel.
        """

    def close(self) -> None:
        """Close the socket and discard unsent bytes."""
