"""Tells a shortage of this machine's own (descriptors, memory, threads) from any other failure.

Any thread. RELIABILITY F33: such a shortage is never taken for an outage of the other side.
"""

from __future__ import annotations

import errno
import os
import resource

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What else a connect or a new thread says when ports or threads are used up. On other calls these
# numbers mean something else.
_CONNECT_SHORTAGES = SHORTAGES | {errno.EAGAIN, errno.EADDRNOTAVAIL}

# Descriptors that accepting connections leaves free: for questions about clients, for key lists,
# certificates and log files. A quarter of a small limit.
DESCRIPTOR_RESERVE = 48
_RESERVE_SHARE = 4
# A name lookup opens up to this many at once (hosts file, resolv.conf, two sockets), and reports
# their want as any other error.
_LOOKUP_DESCRIPTORS = 6


def shortage_of(error: BaseException) -> str:
    """Return what an error says is used up here, in words; "" when it says no such thing.

    Looks at what caused the error, too, since libraries and `ConfigError` wrap what the system said.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, MemoryError):
            return os.strerror(errno.ENOMEM)
        if isinstance(current, RuntimeError) and "start new thread" in str(current):
            return "No thread to be had"
        # A TLS library has numbers of its own.
        number = current.errno if isinstance(current, OSError) else None
        if number in _CONNECT_SHORTAGES and type(current).__module__ != "ssl":
            return os.strerror(number)
        todo += [current.__cause__, current.__context__, getattr(current, "os_error", None)]
    return ""


def lookups_are_short() -> bool:
    """Tell whether there are too few descriptors, here or in the system, to look up a name."""
    return _next_descriptor() >= _limit() - _LOOKUP_DESCRIPTORS


def first_reserved_descriptor() -> int:
    """Return the lowest descriptor of the reserve that accepting connections leaves free."""
    limit = _limit()
    return limit - min(DESCRIPTOR_RESERVE, limit // _RESERVE_SHARE)


def reserve_is_touched() -> bool:
    """Tell whether the next descriptor, which is the lowest free one, would be of the reserve."""
    return _next_descriptor() >= first_reserved_descriptor()


def _next_descriptor() -> int:
    """Return the number that the next descriptor would have; the limit when there is none."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _limit()
    os.close(descriptor)
    return descriptor


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
