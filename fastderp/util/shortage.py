"""Distinguishes a local shortage (descriptors, memory, threads) from other failures.

Any thread. RELIABILITY F33: a local shortage never counts as an outage of a queried service.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import resource

from fastderp.util.threads import NO_THREAD

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
_LISTED = re.compile(r"^Max open files +(\d+) +(\d+)", re.M)
_DEFAULT_LIMIT = 1024


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
            return NO_THREAD
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
    limit = _limit()
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
    return descriptor_limits()[0]


def descriptor_limits() -> tuple[int, int]:
    """Return the number of descriptors that the process may have, and may raise that to.

    The second may be resource.RLIM_INFINITY.
    """
    try:
        return resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a sandbox may forbid the call, such as systemd's SystemCallFilter=~@resources
        return _listed_limits()


@functools.cache
def _listed_limits() -> tuple[int, int]:
    """Return both limits as /proc lists them; the kernel's default without /proc."""
    try:
        with open("/proc/self/limits", encoding="ascii") as file:
            found = _LISTED.search(file.read())
    except OSError:
        found = None
    return (int(found[1]), int(found[2])) if found else (_DEFAULT_LIMIT, _DEFAULT_LIMIT)
