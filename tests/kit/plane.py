"""Sessions of a bare data plane over socketpairs, without HTTP, login and event loop."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastderp.dataplane.plane import ClosedEvent, DropEvent, FrameEvent, Plane
from fastderp.tls.record import RecordLayer
from fastderp.wire.protocol import FrameType, frame
from tests.kit.records import secret_size
from tests.kit.relay import PATIENCE_S

GONE, NOT_HERE = b"\0", b"\1"
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)


class PlanePeer:
    """The client's end of a session."""

    records: RecordLayer | None = None

    def __init__(self, plane: Plane, key: bytes | None = None, /, **promote: Any) -> None:
        self.key = key or os.urandom(32)
        self.opened = bytearray()
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        self.handle = plane.promote(theirs.detach(), self.key, **promote)

    def write(self, data: bytes) -> None:
        """Send encoded frames."""
        self.socket.sendall(self.seal(data))

    def seal(self, data: bytes) -> bytes:
        """Return these bytes as they are on the wire."""
        return data if self.records is None else self.records.seal(data)

    def send(self, frame_type: int, *parts: bytes) -> None:
        self.write(frame(FrameType(frame_type), *parts))

    def send_packet(self, to: bytes, data: bytes) -> None:
        self.send(FrameType.SEND_PACKET, to, data)

    def read(self, n: int) -> bytes:
        while len(self.opened) < n:
            piece = self.socket.recv(n - len(self.opened) if self.records is None else 65536)
            if not piece:
                raise EOFError(f"{len(self.opened)} of {n} bytes")
            self.opened += piece if self.records is None else self.records.open(piece)
        data = bytes(self.opened[:n])
        del self.opened[:n]
        return data

    def receive(self) -> tuple[int, bytes]:
        """Return the type and payload of the next frame."""
        frame_type, n = struct.unpack(">BI", self.read(5))
        return frame_type, self.read(n)

    def sync(self) -> None:
        """Wait until the plane has processed all frames so far; the pong must come next."""
        token = os.urandom(8)
        self.send(FrameType.PING, token)
        assert self.receive() == (FrameType.PONG, token)

    def receive_until_pong(self) -> list[tuple[int, bytes]]:
        """Ping; return all frames before the pong."""
        token = os.urandom(8)
        self.send(FrameType.PING, token)
        frames = []
        while (received := self.receive()) != (FrameType.PONG, token):
            frames.append(received)
        return frames

    def close(self) -> None:
        self.socket.close()


class SealedPeer(PlanePeer):
    """The client's end of a session that uses TLS records."""

    def __init__(
        self,
        plane: Plane,
        key: bytes | None = None,
        /,
        *,
        unread: bytes = b"",
        unread_end: Callable[[SealedPeer], bytes] = lambda peer: b"",
        suite: str = "TLS_AES_128_GCM_SHA256",
        **promote: Any,
    ) -> None:
        up, down = os.urandom(secret_size(suite)), os.urandom(secret_size(suite))
        self.records = RecordLayer(suite, down, up, client=True)
        theirs = RecordLayer(suite, up, down)
        sealed = self.seal(unread) if unread else b""
        super().__init__(plane, key, unread=sealed + unread_end(self), records=theirs, **promote)


@contextmanager
def running_plane(**options: Any) -> Iterator[Plane]:
    """Run a plane with these options.

    Unless they are given, there is no maximum age of packets and no write deadline: a test may let
    a reader stall for as long as the machine needs to fill its backlog.
    """
    plane = Plane(**{"backlog_age_s": 0, "write_timeout_s": 0, **options})
    plane.start()
    try:
        yield plane
    finally:
        plane.close()


def events(plane: Plane, n: int = 1) -> list[FrameEvent | ClosedEvent | DropEvent]:
    """Return the next n events."""
    found: list[FrameEvent | ClosedEvent | DropEvent] = []
    while len(found) < n:
        ready, _, _ = select.select([plane.fileno()], [], [], PATIENCE_S)
        assert ready, f"only {len(found)} of {n} events: {found}"
        found += plane.events()
    return found


def count(plane: Plane, name: str) -> int:
    """Return a counter without labels."""
    n = plane.counters()[name]
    assert isinstance(n, int)
    return n


def dropped(plane: Plane) -> dict[tuple[str, str], int]:
    """Return the drop counters that are not zero."""
    counters: Any = plane.counters()["packets_dropped"]
    return {label: n for label, n in counters.items() if n}


def accounted(plane: Plane) -> bool:
    """Return whether each received packet was delivered, dropped with a reason, or forwarded."""
    c: dict[str, Any] = plane.counters()
    came = c["packets_received"] + c["packets_forwarded_in"]
    return bool(
        came == c["packets_sent"] + sum(dropped(plane).values()) + c["packets_forwarded_out"]
    )


def closed(plane: Plane) -> ClosedEvent:
    [event] = events(plane)
    assert isinstance(event, ClosedEvent)
    return event


def fill(sender: PlanePeer, to: bytes, n: int, size: int) -> None:
    """Send n packets that begin with their number; a pong confirms that all were processed."""
    for i in range(n):
        sender.send_packet(to, struct.pack(">I", i) + bytes(size - 4))
    sender.sync()


def stall(plane: Plane, sender: PlanePeer, slow: PlanePeer) -> None:
    """Fill slow's socket with small packets, so that an unfinished frame is small, too."""
    before = count(plane, "backlog_bytes")
    while count(plane, "backlog_bytes") == before:
        fill(sender, slow.key, 4, 1400)


def packet_number(receiver: PlanePeer) -> int:
    """Receive one packet of `fill`; return its number."""
    number: int = struct.unpack_from(">I", receiver.receive()[1], 32)[0]
    return number
