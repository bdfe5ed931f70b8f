"""Packet forwarders of a program: objects that take packets for keys on other relays.

PROTOCOL §7.5. The data plane sees each as a mesh link over a socket pair; this module reads the other end. Loop
thread only.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from fastderp.dataplane.plane import Plane, PlaneError
from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.server.observe.supervisor import supervisor
from fastderp.wire.keys import NodePublic
from fastderp.wire.protocol import HEADER, HEADER_SIZE, KEEPALIVE_S, KEY_SIZE, FrameType, frame

log: logging.Logger = logging.getLogger("fastderp")

READ_BYTES = 256 * 1024
# Seconds for packets in flight to a removed forwarder: a worker's turn lasts milliseconds, but the
# forwarder may be slow. Later packets are lost.
LINGER_S = 1.0
# Seconds before the next attempt when the system refused a session.
RETRY_S = 0.5


class PacketForwarder(Protocol):
    """Sends packets to another relay, as `HTTPClient` with a mesh key does. PROTOCOL §7.5, §7.6."""

    def forward_packet(
        self, source: NodePublic, destination: NodePublic, data: bytes, /
    ) -> Awaitable[None] | None:
        """Forward the packet `data` from `source` to `destination`.

        The caller awaits the result before the next packet. An exception is logged, and its
        packet is lost.
        """


class _Carrier:
    """One forwarder's session and keys."""

    def __init__(self, plane: Plane, forwarder: PacketForwarder, throttle: LogThrottle) -> None:
        """Open the session. Raises OSError or PlaneError when descriptors or memory are out."""
        self._ours, theirs = socket.socketpair()
        try:
            self._ours.setblocking(False)
            # The data plane owns the descriptor, even when it refuses the session.
            self.handle = plane.promote(theirs.detach(), bytes(KEY_SIZE), link=True)
        except BaseException:
            self._ours.close()
            theirs.close()
            raise
        self._plane = plane
        self._unread = bytearray()
        self.forwarder = forwarder
        self.keys: set[bytes] = set()
        self._throttle = throttle
        self._leaving: asyncio.TimerHandle | None = None
        self._beat = supervisor.start("packet forwarder", self._keep_alive)
        self.carrying = supervisor.start("packet forwarder", self._carry)
        self.carrying.add_done_callback(self._carried)

    def leave(self, left: Callable[[_Carrier], None]) -> None:
        """Call `left` once the packets in flight have arrived, unless `stay` comes first."""
        self._leaving = asyncio.get_running_loop().call_later(
            LINGER_S, supervisor.guarded("packet forwarder", left), self
        )

    def stay(self) -> None:
        """Cancel `leave`."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def finish(self) -> None:
        """End the session; packets that the data plane has written are still forwarded."""
        self._plane.close_session(self.handle)

    def close(self) -> None:
        """End the session at once; packets in flight are lost."""
        self.stay()
        self.carrying.cancel()

    def _carried(self, _: object) -> None:
        self._beat.cancel()
        self._ours.close()

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await self._received(loop):
            self._unread += data
            while (payload := _take_frame(self._unread)) is not None:
                await self._forward(payload)

    async def _received(self, loop: asyncio.AbstractEventLoop) -> bytes:
        try:
            return await loop.sock_recv(self._ours, READ_BYTES)
        except ConnectionError:
            return b""  # the data plane has closed its end with unread bytes

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

    async def _keep_alive(self) -> None:
        """Send keep-alives as a linked relay does, or the session would time out."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            try:
                await loop.sock_sendall(self._ours, frame(FrameType.KEEP_ALIVE))
            except ConnectionError:
                return  # the session is over


def _take_frame(unread: bytearray) -> bytes | None:
    """Return the payload of the first frame once it is complete; all are ForwardPacket."""
    if len(unread) < HEADER_SIZE:
        return None
    end = HEADER_SIZE + HEADER.unpack_from(unread)[1]
    if len(unread) < end:
        return None
    payload = bytes(unread[HEADER_SIZE:end])
    del unread[:end]
    return payload


class Forwarders:
    """All packet forwarders of a relay, compared by identity."""

    def __init__(self, plane: Plane) -> None:
        """Start without forwarders."""
        self._plane = plane
        # by id() of the forwarder; the carrier keeps a reference to it
        self._carriers: dict[int, _Carrier] = {}
        # carriers without a session, whose keys wait for a new one
        self._lost: list[_Carrier] = []
        self._retry: asyncio.TimerHandle | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._throttle = LogThrottle(log)

    @property
    def keys(self) -> set[bytes]:
        """The keys of all forwarders."""
        return {key for carrier in (*self._carriers.values(), *self._lost) for key in carrier.keys}

    def add(self, key: bytes, forwarder: PacketForwarder) -> None:
        """Use the forwarder for a key; a no-op when it is used already.

        Raises OSError or PlaneError when descriptors or memory are out.
        """
        carrier = self._carriers.get(id(forwarder))
        if carrier is None:
            carrier = self._carriers[id(forwarder)] = _Carrier(
                self._plane, forwarder, self._throttle
            )
            self._carrying.add(carrier.carrying)
            carrier.carrying.add_done_callback(self._carrying.discard)
        carrier.stay()
        try:
            self._plane.add_forwarder(key, carrier.handle)
        except BaseException:
            if not carrier.keys:
                carrier.leave(self._left)
            raise
        carrier.keys.add(key)

    def remove(self, key: bytes, forwarder: PacketForwarder) -> None:
        """Stop using the forwarder for a key; packets in flight still arrive.

        A forwarder that was never added is only counted.
        """
        for lost in self._lost:
            if lost.forwarder is forwarder and key in lost.keys:
                lost.keys.remove(key)
                self._plane.remove_forwarder(key, lost.handle)
                return
        carrier = self._carriers.get(id(forwarder))
        self._plane.remove_forwarder(key, carrier.handle if carrier is not None else 0)
        if carrier is not None and key in carrier.keys:
            carrier.keys.remove(key)
            if not carrier.keys:
                carrier.leave(self._left)

    def _left(self, carrier: _Carrier) -> None:
        self._carriers.pop(id(carrier.forwarder), None)
        carrier.finish()

    def closed(self, handle: int) -> None:
        """Note the end of a session: after a write timeout, the forwarder gets a new session."""
        for carrier in [carrier for carrier in self._carriers.values() if carrier.handle == handle]:
            del self._carriers[id(carrier.forwarder)]
            carrier.stay()
            self._lost.append(carrier)
            self._replace_lost()

    def _replace_lost(self) -> None:
        """Open new sessions for the keys of ended ones; retry every RETRY_S."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        while self._lost:
            carrier = self._lost[0]
            try:
                while carrier.keys:
                    key = carrier.keys.pop()
                    try:
                        self.add(key, carrier.forwarder)
                    except BaseException:
                        carrier.keys.add(key)
                        raise
                    self._plane.remove_forwarder(key, carrier.handle)
            except (OSError, PlaneError) as error:
                self._throttle.log(
                    "refused",
                    "a packet forwarder has no session: %s; next attempt in %g s",
                    error,
                    RETRY_S,
                )
                self._retry = asyncio.get_running_loop().call_later(
                    RETRY_S, supervisor.guarded("packet forwarder", self._replace_lost)
                )
                return
            self._lost.pop(0)

    async def close(self) -> None:
        """End all forwarders, including those with packets in flight."""
        if self._retry is not None:
            self._retry.cancel()
        for carrier in self._carriers.values():
            carrier.close()
        self._carriers.clear()
        self._lost.clear()
        tasks = list(self._carrying)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
