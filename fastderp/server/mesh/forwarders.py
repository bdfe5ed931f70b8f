"""Packet forwarders that a program adds: any object that takes packets for a key which is not connected here. PROTOCOL §7.5.

To the data plane each is a mesh link, over a socket pair whose other end is read here. Loop thread only.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from fastderp.dataplane.plane import Plane
from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.wire.keys import NodePublic
from fastderp.wire.protocol import HEADER, HEADER_SIZE, KEEPALIVE_S, KEY_SIZE, FrameType, frame

log = logging.getLogger("fastderp")

READ_BYTES = 256 * 1024
# A packet may be on its way to a forwarder when that is removed: in a worker's turn, which lasts milliseconds, or waiting for
# the forwarder to take it. One that takes nothing for longer loses it.
LINGER_S = 1.0


class PacketForwarder(Protocol):
    """Takes packets to somewhere else; `HTTPClient` with a mesh key is one. PROTOCOL §7.5, §7.6."""

    def forward_packet(
        self, source: NodePublic, destination: NodePublic, data: bytes, /
    ) -> Awaitable[None] | None:
        """Send a packet of `data` on to `destination`, in the name of `source`.

        What it returns is awaited before the next packet; what it raises is logged, and the packet is lost.
        """


class _Carrier:
    """One forwarder's session, and the keys it is used for."""

    def __init__(self, plane: Plane, forwarder: PacketForwarder, throttle: LogThrottle) -> None:
        loop = asyncio.get_running_loop()
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._plane = plane
        self.forwarder = forwarder
        self.keys: set[bytes] = set()
        self.handle = plane.promote(theirs.detach(), bytes(KEY_SIZE), link=True)
        self._throttle = throttle
        self._leaving: asyncio.TimerHandle | None = None
        self._beat = loop.create_task(_keep_alive(self._ours))
        self._carrying = loop.create_task(self._carry())
        self._carrying.add_done_callback(self._carried)

    def leave(self, left: Callable[[_Carrier], None]) -> None:
        """Have `left` called once what is on its way has arrived, unless it is to stay."""
        self._leaving = asyncio.get_running_loop().call_later(LINGER_S, left, self)

    def stay(self) -> None:
        """Go on, or have come to an end otherwise."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def finish(self) -> None:
        """End the session; what has left the data plane is still forwarded."""
        self._plane.close_session(self.handle)

    def close(self) -> None:
        """End at once."""
        self.stay()
        self._carrying.cancel()

    def _carried(self, _: object) -> None:
        self._beat.cancel()
        self._ours.close()

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        unread = bytearray()
        while data := await loop.sock_recv(self._ours, READ_BYTES):
            unread += data
            while (payload := _take_frame(unread)) is not None:
                await self._forward(payload)

    async def _forward(self, payload: bytes) -> None:
        source, destination = (
            NodePublic(payload[:KEY_SIZE]),
            NodePublic(payload[KEY_SIZE : 2 * KEY_SIZE]),
        )
        try:
            done = self.forwarder.forward_packet(source, destination, payload[2 * KEY_SIZE :])
            if done is not None:
                await done
        except Exception as error:
            self._throttle.log(
                ("forwarder", self.handle),
                "a packet forwarder failed: %s",
                error or type(error).__name__,
            )


def _take_frame(unread: bytearray) -> bytes | None:
    """Return the payload of the first frame once it is whole. The data plane sends ForwardPacket only."""
    if len(unread) < HEADER_SIZE:
        return None
    end = HEADER_SIZE + HEADER.unpack_from(unread)[1]
    if len(unread) < end:
        return None
    payload = bytes(unread[HEADER_SIZE:end])
    del unread[:end]
    return payload


async def _keep_alive(ours: socket.socket) -> None:
    """Be heard, as every relay at the other end of a link is: silence ends the session."""
    while True:
        await asyncio.sleep(KEEPALIVE_S)
        await asyncio.get_running_loop().sock_sendall(ours, frame(FrameType.KEEP_ALIVE))


class Forwarders:
    """Every packet forwarder of a relay. The same object is the same forwarder."""

    def __init__(self, plane: Plane) -> None:
        """Begin with none."""
        self._plane = plane
        self._carriers: dict[
            int, _Carrier
        ] = {}  # by id() of the forwarder, which the carrier keeps alive
        self._throttle = LogThrottle(log)

    @property
    def keys(self) -> set[bytes]:
        """The keys that some forwarder takes packets for."""
        return {key for carrier in self._carriers.values() for key in carrier.keys}

    def add(self, key: bytes, forwarder: PacketForwarder) -> None:
        """Use the forwarder for a key. Adding it twice is adding it once."""
        carrier = self._carriers.get(id(forwarder))
        if carrier is None:
            carrier = self._carriers[id(forwarder)] = _Carrier(
                self._plane, forwarder, self._throttle
            )
        carrier.stay()
        self._plane.add_forwarder(key, carrier.handle)
        carrier.keys.add(key)

    def remove(self, key: bytes, forwarder: PacketForwarder) -> None:
        """Use the forwarder for a key no longer; packets on their way still arrive. One that was never added only counts."""
        carrier = self._carriers.get(id(forwarder))
        self._plane.remove_forwarder(key, carrier.handle if carrier is not None else 0)
        if carrier is not None and key in carrier.keys:
            carrier.keys.remove(key)
            if not carrier.keys:
                carrier.leave(self._left)

    def _left(self, carrier: _Carrier) -> None:
        del self._carriers[id(carrier.forwarder)]
        carrier.finish()

    def closed(self, handle: int) -> None:
        """Note the end of a session: a forwarder that took nothing for too long gets a new one."""
        for carrier in [carrier for carrier in self._carriers.values() if carrier.handle == handle]:
            del self._carriers[id(carrier.forwarder)]
            carrier.stay()
            for key in carrier.keys:
                self.add(key, carrier.forwarder)
                self._plane.remove_forwarder(key, handle)

    def close(self) -> None:
        """End them all."""
        for carrier in self._carriers.values():
            carrier.close()
        self._carriers.clear()
