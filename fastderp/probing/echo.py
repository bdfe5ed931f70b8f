"""Sends packets from one client through the relay to another, which sends them back.

One event loop; nothing else receives from the two clients.
"""

from __future__ import annotations

import asyncio
import os
import statistics

from fastderp.client.client import Client
from fastderp.probing.step import Finding, Outcome, ms
from fastderp.wire.keys import NodePublic
from fastderp.wire.messages import ReceivedPacket

PACKET_BYTES = 1200
# Packets under way at once: every relay holds more than this for a client.
WINDOW = 8
_NUMBER_BYTES = 4


class Echo:
    """`count` packets of PACKET_BYTES from `near` to `far` and back.

    With the same client twice, the packets come back to their sender directly.
    """

    def __init__(self, near: Client, far: Client, count: int) -> None:
        self._near = near
        self._far = far
        self._count = count
        self._filler = os.urandom(PACKET_BYTES - _NUMBER_BYTES)
        self._sent_s: list[float] = []
        self._times: dict[int, float] = {}
        self._latest = -1
        self._n_disordered = 0
        self._n_damaged = 0

    async def run(self, timeout_s: float) -> Finding:
        """Send the packets and wait until all are back, up to `timeout_s` seconds.

        Raises ConnectionClosed, ConnectionLost or ProtocolError when a connection ends.
        """
        room = asyncio.Semaphore(WINDOW)
        # When sending fails, receiving from the same client does, too.
        awaited = [asyncio.create_task(self._receive(room))]
        if self._far is not self._near:
            awaited.append(asyncio.create_task(self._reflect()))
        tasks = [*awaited, asyncio.create_task(self._send(room))]
        try:
            done, _ = await asyncio.wait(
                awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._finding(timeout_s)

    async def _send(self, room: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        for number in range(self._count):
            await room.acquire()
            packet = number.to_bytes(_NUMBER_BYTES) + self._filler
            await self._near.send(self._far.public_key, packet)
            self._sent_s.append(loop.time())  # after the wait for the relay's rate

    async def _reflect(self) -> None:
        while True:
            packet = await _packet(self._far, self._near.public_key)
            await self._far.send(self._near.public_key, packet)

    async def _receive(self, room: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        while len(self._times) + self._n_damaged < self._count:
            packet = await _packet(self._near, self._far.public_key)
            number = int.from_bytes(packet[:_NUMBER_BYTES])
            if packet[_NUMBER_BYTES:] != self._filler or number >= len(self._sent_s):
                self._n_damaged += 1
            elif number not in self._times:
                self._times[number] = loop.time() - self._sent_s[number]
                self._n_disordered += number < self._latest
                self._latest = max(number, self._latest)
            room.release()

    def _finding(self, timeout_s: float) -> Finding:
        n_lost = self._count - len(self._times)
        times = list(self._times.values())
        faults = []
        if n_lost:
            faults.append(f"{len(times)} of {self._count} packets came back in {timeout_s:.3g} s")
        if self._n_disordered:
            faults.append(f"{self._n_disordered} out of order")
        if self._n_damaged:
            faults.append(f"{self._n_damaged} damaged")
        median_s = statistics.median(times) if times else None
        details = {
            "packets": self._count,
            "packet_bytes": PACKET_BYTES,
            "lost": n_lost,
            "out_of_order": self._n_disordered,
            "damaged": self._n_damaged,
            "max_seconds": round(max(times), 6) if times else None,
        }
        if faults:
            return Finding(", ".join(faults), details, median_s, Outcome.FAILED)
        way = "to itself" if self._far is self._near else "there and back"
        text = f"{self._count} packets {way}, in order; max {ms(max(times))}"
        return Finding(text, details, median_s)


async def _packet(client: Client, source: NodePublic) -> bytes:
    """Return the next packet from a client; skip other messages."""
    while True:
        message = await client.recv()
        if isinstance(message, ReceivedPacket) and message.source == source:
            return message.data
