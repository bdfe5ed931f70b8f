"""Sessions of a bare data plane over socketpairs: no HTTP, no login, no event loop."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastderp.dataplane.plane import ClosedEvent, FrameEvent, Plane
from fastderp.protocol import FrameType, frame

DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)


class PlanePeer:
    """The client's end of one session."""

    def __init__(self, plane: Plane, key: bytes | None = None, **promote: Any) -> None:
        self.key = key or os.urandom(32)
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.handle = plane.promote(theirs.detach(), self.key, **promote)

    def send(self, frame_type: int, *parts: bytes) -> None:
        self.socket.sendall(frame(FrameType(frame_type), *parts))

    def send_packet(self, to: bytes, data: bytes) -> None:
        self.send(FrameType.SEND_PACKET, to, data)

    def read(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n:
            piece = self.socket.recv(n - len(data))
            if not piece:
                raise EOFError(f"{len(data)} of {n} bytes")
            data += piece
        return bytes(data)

    def receive(self) -> tuple[int, bytes]:
        """Return type and payload of the next frame."""
        frame_type, n = struct.unpack(">BI", self.read(5))
        return frame_type, self.read(n)

    def sync(self) -> None:
        """Return when the plane has dealt with everything sent so far; the pong must be what comes next."""
        token = os.urandom(8)
        self.send(FrameType.PING, token)
        assert self.receive() == (FrameType.PONG, token)

    def receive_until_pong(self) -> list[tuple[int, bytes]]:
        """Return all frames in front of the pong for a ping sent now."""
        token = os.urandom(8)
        self.send(FrameType.PING, token)
        frames = []
        while (received := self.receive()) != (FrameType.PONG, token):
            frames.append(received)
        return frames

    def close(self) -> None:
        self.socket.close()


@contextmanager
def running_plane(**options: Any) -> Iterator[Plane]:
    plane = Plane(**options)
    plane.start()
    try:
        yield plane
    finally:
        plane.close()


def events(plane: Plane, n: int = 1) -> list[FrameEvent | ClosedEvent]:
    """Return the next n events."""
    news: list[FrameEvent | ClosedEvent] = []
    while len(news) < n:
        ready, _, _ = select.select([plane.fileno()], [], [], 10)
        assert ready, f"only {len(news)} of {n} events: {news}"
        news += plane.events()
    return news


def dropped(plane: Plane) -> dict[tuple[str, str], int]:
    """Return the drop counters that are not zero."""
    counters: Any = plane.counters()["packets_dropped"]
    return {label: n for label, n in counters.items() if n}
