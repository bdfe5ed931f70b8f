"""Checks of the arguments that callers give to the client library.

Pure functions for any thread. Errors never quote values, which may be secrets.
"""

from __future__ import annotations

import os

from fastderp.errors import WrongLoopError
from fastderp.wire.protocol import MAX_PACKET_SIZE, PING_SIZE


def check_type(name: str, value: object, wanted: type) -> None:
    """Raise TypeError that names the argument, the expected type and the given type."""
    if not isinstance(value, wanted):
        reads_text = isinstance(value, str) and hasattr(wanted, "from_text")
        remedy = f"; {wanted.__name__}.from_text reads its text" if reads_text else ""
        raise TypeError(f"{name} must be a {wanted.__name__}, not {type(value).__name__}{remedy}")


def bytes_of(name: str, data: object) -> bytes:
    """Return the bytes of a bytes-like argument, without a copy if it is `bytes`."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"{name} must be bytes, bytearray or memoryview, not {type(data).__name__}")


def check_packet_size(size: int) -> None:
    """Raise ValueError for more bytes than a packet holds. PROTOCOL §2."""
    if size > MAX_PACKET_SIZE:
        raise ValueError(f"a packet has at most {MAX_PACKET_SIZE} bytes, not {size}")


def check_limit(limit: int | None) -> None:
    """Raise ValueError for a limit of messages below 1; None is no limit."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or None, not {limit}")


def ping_data(data: object) -> bytes:
    """Return the 8 bytes of a ping. Raises ValueError for other sizes. PROTOCOL §2."""
    data = bytes_of("data", data)
    if len(data) != PING_SIZE:
        raise ValueError(f"a ping has {PING_SIZE} bytes, not {len(data)}")
    return data


def wrong_loop_error(made_in_pid: int) -> WrongLoopError:
    """Return the error for a client of `made_in_pid` that is used outside its event loop."""
    if os.getpid() != made_in_pid:
        return WrongLoopError(
            "the client was made before a fork; make one in the child process instead"
        )
    return WrongLoopError("the client belongs to another event loop; make one for each loop")
