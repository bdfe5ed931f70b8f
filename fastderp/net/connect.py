"""Connects to a host name: of its addresses, to the first that answers."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from functools import partial
from typing import Any

from fastderp.net.lookup import Address, look_up

# Head start of an address of a name before its next one (RFC 8305 §5).
NEXT_ADDRESS_S = 0.25


async def connect_tcp(
    host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
) -> socket.socket:
    """Return a TCP socket that is connected to a host, without delays by Nagle's algorithm.

    A name's addresses are tried in the system's order, so that a silent one delays the next by
    NEXT_ADDRESS_S only. Raises the OSError of the first address, or ValueError for a malformed
    name.
    """
    if "\0" in host:
        raise ValueError("embedded null character")  # C would look up the part before it
    loop = asyncio.get_running_loop()
    return await _first_connected(loop, deque(await look_up(host, port, family)))


async def _first_connected(
    loop: asyncio.AbstractEventLoop, addresses: deque[Address]
) -> socket.socket:
    """Try the addresses in their order; return the socket of the first that answers.

    The next attempt begins when the last one has failed, or has taken NEXT_ADDRESS_S.
    """
    tasks: list[asyncio.Task[socket.socket]] = []
    pending: set[asyncio.Task[socket.socket]] = set()
    winner: socket.socket | None = None
    try:
        while winner is None and (addresses or pending):
            if addresses:
                tasks.append(loop.create_task(_connected(loop, *addresses.popleft())))
                pending.add(tasks[-1])
            done, pending = await asyncio.wait(
                pending,
                timeout=NEXT_ADDRESS_S if addresses else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = next((task.result() for task in done if task.exception() is None), None)
        if winner is None:
            raise next(error for task in tasks if (error := task.exception()) is not None)
        return winner
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(partial(_close_unless, winner))


async def _connected(
    loop: asyncio.AbstractEventLoop, family: socket.AddressFamily, address: tuple[Any, ...]
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_unless(winner: socket.socket | None, attempt: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that has succeeded, unless it is the winner."""
    if not attempt.cancelled() and attempt.exception() is None:
        sock = attempt.result()
        if sock is not winner:
            sock.close()
