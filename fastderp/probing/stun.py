"""Asks a relay over STUN which address it sees us at. One event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics

from fastderp.client.stun import TRANSACTION_ID_SIZE, binding_request, parse_response
from fastderp.errors import ProtocolError
from fastderp.net.lookup import Address
from fastderp.probing.step import Finding, Outcome
from fastderp.util.net import format_address

N_REQUESTS = 3
_DATAGRAM_BYTES = 1500


async def stun_finding(address: Address, timeout_s: float) -> Finding:
    """Send some requests, one after another, and wait for the answer of each.

    Raises OSError when the port is closed or there is no route, TimeoutError when no request was
    answered within `timeout_s` together, ProtocolError for an answer that is none.
    """
    family, place = address
    times, seen = [], ("", 0)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(place)  # drops answers from other addresses
        for _ in range(N_REQUESTS):
            try:
                async with asyncio.timeout(timeout_s / N_REQUESTS):
                    seconds, seen = await _asked(sock)
                times.append(seconds)
            except TimeoutError:
                continue  # UDP may lose either datagram
    if not times:
        raise TimeoutError
    median_s = statistics.median(times)
    text = f"{format_address(place[:2])} sees us at {format_address(seen)}"
    if lost := N_REQUESTS - len(times):
        text += f"; {lost} of {N_REQUESTS} requests without an answer"
    details = {
        "server": format_address(place[:2]),
        "address": seen[0],
        "port": seen[1],
        "requests": N_REQUESTS,
        "answers": len(times),
        "max_seconds": round(max(times), 6),
    }
    return Finding(text, details, median_s, Outcome.NOTE if lost else Outcome.OK)


async def _asked(sock: socket.socket) -> tuple[float, tuple[str, int]]:
    """Return the seconds until the answer to one request, and the address in it."""
    loop = asyncio.get_running_loop()
    asked = os.urandom(TRANSACTION_ID_SIZE)
    started_s = loop.time()
    await loop.sock_sendall(sock, binding_request(asked))
    while True:
        datagram = await loop.sock_recv(sock, _DATAGRAM_BYTES)
        try:
            answered, ip, port = parse_response(datagram)
        except ProtocolError as error:
            raise ProtocolError(f"the answer is not STUN's: {error}") from None
        if answered == asked:  # not the late answer to an earlier one
            return loop.time() - started_s, (ip, port)
