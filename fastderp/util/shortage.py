"""Distinguishes a local shortage (descriptors, memory, threads) from other failures.

Any thread. RELIABILITY F33: a local shortage never counts as an outage of a queried service.
"""

from __future__ import annotations

import errno
import os
import resource

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Further errors of a connect or a new thread when ports or threads are used up. Other calls use
# these numbers for other errors.
_CONNECT_SHORTAGES = SHORTAGES | {errno.EAGAIN, errno.EADDRNOTAVAIL}

# Descriptors that the listeners leave free for requests to verifiers, key lists, certificates and
# log files; a quarter of a small limit.
DESCRIPTOR_RESERVE = 48
_RESERVE_SHARE = 4
# A name lookup opens up to this many at once (hosts file, resolv.conf, two sockets). Its errors
# do not show a shortage of descriptors.
_LOOKUP_DESCRIPTORS = 6


def shortage_of(error: BaseException) -> str:
    """Return the name of the local resource whose shortage caused an error; "" for other errors.

    Examines the causes of the error, too: libraries and `ConfigError` wrap the system's errors.
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
            return "No thread available"
        # A TLS library has its own error numbers.
        number = current.errno if isinstance(current, OSError) else None
        if number in _CONNECT_SHORTAGES and type(current).__module__ != "ssl":
            return os.strerror(number)
        todo += [current.__cause__, current.__context__, getattr(current, "os_error", None)]
    return ""


def lookups_are_short() -> bool:
    """Whether too few descriptors for a name lookup are left in the process or the system."""
    return _next_descriptor() >= _limit() - _LOOKUP_DESCRIPTORS


def first_reserved_descriptor() -> int:
    """Return the lowest descriptor of the reserve that the listeners leave free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - min(DESCRIPTOR_RESERVE, limit // _RESERVE_SHARE)


def reserve_is_touched() -> bool:
    """Whether the next descriptor, the lowest free one, would belong to the reserve."""
    return _next_descriptor() >= first_reserved_descriptor()


def _next_descriptor() -> int:
    """Return the number that the next descriptor would have; the limit when all are in use."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _limit()
    os.close(descriptor)
    return descriptor


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
