"""Looks up host names, each in a thread of its own.

An event loop has few threads for all lookups, uvloop two at once: names whose nameserver is silent
would delay every other name. Any thread with an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from functools import partial
from typing import Any

from fastderp.errors import ShortageError
from fastderp.util.net import host_bytes
from fastderp.util.threads import in_thread

# Lookups at once: strangers may choose the names, such as those of tunnels.
THREADS_MAX = 128

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
"""The family of an address, and the address as the socket module writes it."""

_Key = tuple[asyncio.AbstractEventLoop, str, int, socket.AddressFamily]

# The lookups that have not ended; another task that asks for the same waits for them.
_running: dict[_Key, asyncio.Future[list[Address]]] = {}


async def look_up(host: str, port: int, family: socket.AddressFamily) -> list[Address]:
    """Return the addresses of a host for TCP, in the system's order.

    Raises OSError, also when the system has no thread, or ValueError for a malformed name.
    """
    with contextlib.suppress(socket.gaierror):  # not an address: a name
        return _addresses(host, port, family, socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    key = (loop, host, port, family)
    while key not in _running:
        others = [lookup for (its_loop, *_), lookup in list(_running.items()) if its_loop is loop]
        if len(others) < THREADS_MAX:
            _start(key)
        else:
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
    return await asyncio.shield(_running[key])


def _start(key: _Key) -> None:
    _forget_closed_loops()
    try:
        lookup = in_thread("lookup", partial(_addresses, *key[1:]))
    except ShortageError as error:
        raise OSError(errno.EAGAIN, "no thread for the name lookup") from error
    _running[key] = lookup
    lookup.add_done_callback(partial(_end, key))


def _end(key: _Key, lookup: asyncio.Future[list[Address]]) -> None:
    _running.pop(key, None)
    lookup.exception()  # all who asked may have given up


def _forget_closed_loops() -> None:
    for key in list(_running):
        if key[0].is_closed():
            _running.pop(key, None)


def _addresses(host: str, port: int, family: socket.AddressFamily, flags: int = 0) -> list[Address]:
    found = socket.getaddrinfo(host_bytes(host), port, family, socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((kind, address) for kind, _, _, _, address in found))
