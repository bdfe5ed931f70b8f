"""Checks of the arguments that callers give to the client library.

Pure functions for any thread. Errors never quote values, which may be secrets.
"""

from __future__ import annotations

import os
from typing import TypeAlias

from fastderp.errors import WrongLoopError
from fastderp.util.arguments import check_type
from fastderp.wire.login import is_app_name
from fastderp.wire.protocol import MAX_APP_NAME_BYTES, MAX_PACKET_SIZE, PING_SIZE

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""The types of the data that a program sends."""


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


def check_app_name(name: str) -> None:
    """Raise TypeError or ValueError for a name that relays refuse. PROTOCOL §22."""
    check_type("app_name", name, str)
    if not is_app_name(name):
        raise ValueError(
            f"app_name must have at most {MAX_APP_NAME_BYTES} characters of printable ASCII"
        )


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
