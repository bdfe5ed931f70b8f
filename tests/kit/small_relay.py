"""A minimal relay: logged-in clients over socket pairs in one thread, without HTTP and boxes.

It is the peer in tests of the client side. `change` gets every RecvPacket frame and
returns the frame to deliver; b"" loses the packet. With `tls` all bytes are in TLS 1.3 records.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastderp.loadgen.connect import Joined
from fastderp.tls.record import RecordLayer
from fastderp.wire.protocol import HEADER, HEADER_SIZE, KEY_SIZE, FrameType, frame

Change = Callable[[bytes], bytes]
SUITE = "TLS_AES_128_GCM_SHA256"


def _records() -> tuple[RecordLayer, RecordLayer]:
    """Return the record layers of a connection: the relay's and the client's."""
    up, down = secrets.token_bytes(32), secrets.token_bytes(32)
    return RecordLayer(SUITE, up, down), RecordLayer(SUITE, down, up, client=True)


@dataclass
class _Member:
    sock: socket.socket
    key: bytes
    records: RecordLayer | None = None
    unread: bytearray = field(default_factory=bytearray)
    n_wire_bytes: int = 0
    n_frame_bytes: int = 0
    n_frames: int = 0

    def received(self, data: bytes) -> None:
        self.n_wire_bytes += len(data)
        plain = self.records.open(data) if self.records else data
        self.n_frame_bytes += len(plain)
        self.unread += plain

    def deliver(self, data: bytes) -> None:
        """Send to the client; ignore a client that is gone."""
        try:
            self.sock.sendall(self.records.seal(data) if self.records else data)
        except OSError:
            pass

    def frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self.unread) >= HEADER_SIZE:
            frame_type, length = HEADER.unpack(self.unread[:HEADER_SIZE])
            end = HEADER_SIZE + length
            if len(self.unread) < end:
                return
            payload = bytes(self.unread[HEADER_SIZE:end])
            del self.unread[:end]
            self.n_frames += 1
            yield frame_type, payload


class SmallRelay:
    """`clients` are the load's ends, `members` the relay's ends in the same order."""

    def __init__(self, n: int, change: Change, tls: bool) -> None:
        pairs = [socket.socketpair() for _ in range(n)]
        keys = [bytes([index + 1]) * KEY_SIZE for index in range(n)]
        for ours, theirs in pairs:
            theirs.setblocking(False)
            ours.settimeout(30)
        self.clients: list[Joined] = []
        self.members: list[_Member] = []
        for (ours, theirs), key in zip(pairs, keys, strict=True):
            relay_end, client_end = _records() if tls else (None, None)
            self.members.append(_Member(ours, key, relay_end))
            self.clients.append(Joined(theirs, key, records=client_end))
        self._change = change
        self._by_key = {member.key: member for member in self.members}
        self._selector = selectors.DefaultSelector()
        for member in self.members:
            self._selector.register(member.sock, selectors.EVENT_READ, member)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._selector.close()
        for member in self.members:
            member.sock.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            for ready, _ in self._selector.select(0.02):
                self._read(ready.data)

    def _read(self, member: _Member) -> None:
        try:
            data = member.sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(member.sock)
            return
        member.received(data)
        for frame_type, payload in member.frames():
            assert frame_type == FrameType.SEND_PACKET
            to = self._by_key[payload[:KEY_SIZE]]
            to.deliver(self._change(frame(FrameType.RECV_PACKET, member.key, payload[KEY_SIZE:])))


@contextmanager
def small_relay(
    n: int, change: Change = lambda packet: packet, *, tls: bool = False
) -> Iterator[SmallRelay]:
    """Run a SmallRelay for `n` clients."""
    relay = SmallRelay(n, change, tls)
    try:
        yield relay
    finally:
        relay.close()
