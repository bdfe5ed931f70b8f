"""A DERP client on a blocking socket that reads and writes frames by hand.

It shares no code with the library's client, so that both ends cannot share an error.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from fastderp.wire.keys import NodePrivate, NodePublic

MAGIC = b"DERP\xf0\x9f\x94\x91"
DISCO = b"TS\xf0\x9f\x92\xac"

SERVER_KEY, CLIENT_INFO, SERVER_INFO, SEND, RECV, KEEP_ALIVE, PREFERRED, GONE = range(1, 9)
PRESENT, FORWARD, WATCH, CLOSE_PEER, PING, PONG, HEALTH, RESTARTING = (
    0x09,
    0x0A,
    0x10,
    0x11,
    0x12,
    0x13,
    0x14,
    0x15,
)


def frame(frame_type: int, payload: bytes = b"") -> bytes:
    """Build a frame."""
    return struct.pack(">BI", frame_type, len(payload)) + payload


def upgrade_request(*headers: str) -> bytes:
    """Build the request that real clients send."""
    lines = [
        "GET /derp HTTP/1.1",
        "Host: derp.example.com",
        "Connection: Upgrade",
        "Upgrade: DERP",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


FAST_START = "Derp-Fast-Start: 1"


def client_info(
    key: NodePrivate, relay: NodePublic, json: bytes = b'{"version":2,"CanAckPings":true}'
) -> bytes:
    """Build a complete ClientInfo frame around any JSON."""
    return frame(CLIENT_INFO, key.public_key.raw + key.seal_to(relay, json))


class Peer:
    """A connection at any stage."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.key = NodePrivate.generate()
        self.health: list[str] = []
        self._received = b""

    @classmethod
    def connect(cls, host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float) -> Self:
        """Connect; the handshake is done on return."""
        sock = socket.create_connection((host, port), timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname="127.0.0.1")
        return cls(sock)

    @property
    def public(self) -> NodePublic:
        """The peer's public key, which is its address."""
        return self.key.public_key

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close without a close_notify or close frame."""
        self.sock.close()

    # Bytes

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(data)

    def read(self, n_bytes: int) -> bytes:
        """Read exactly `n_bytes`; raise EOFError when the relay closes earlier."""
        while len(self._received) < n_bytes:
            data = self._receive()
            if not data:
                raise EOFError(f"closed after {self._received[:200]!r}")
            self._received += data
        data, self._received = self._received[:n_bytes], self._received[n_bytes:]
        return data

    def read_head(self) -> bytes:
        """Read up to and including an empty line."""
        while b"\r\n\r\n" not in self._received:
            data = self._receive()
            if not data:
                raise EOFError(f"closed after {self._received[:200]!r}")
            self._received += data
        end = self._received.index(b"\r\n\r\n") + 4
        head, self._received = self._received[:end], self._received[end:]
        return head

    def read_to_end(self) -> bytes:
        """Read until the relay closes."""
        while data := self._receive():
            self._received += data
        data, self._received = self._received, b""
        return data

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except (ConnectionResetError, ssl.SSLEOFError):
            return b""

    # Frames

    def send_frame(self, frame_type: int, payload: bytes = b"") -> None:
        """Send one frame."""
        self.send(frame(frame_type, payload))

    def send_packet(self, to: NodePublic, data: bytes) -> None:
        """Send a SendPacket."""
        self.send_frame(SEND, to.raw + data)

    def read_frame(self) -> tuple[int, bytes]:
        """Return the next frame but Health; Health frames are appended to `health`."""
        while True:
            frame_type, length = struct.unpack(">BI", self.read(5))
            payload = self.read(length)
            if frame_type != HEALTH:
                return frame_type, payload
            self.health.append(payload.decode())

    def read_frames(self, n_frames: int) -> list[tuple[int, bytes]]:
        """Read `n_frames` frames."""
        return [self.read_frame() for _ in range(n_frames)]

    def read_packet(self) -> tuple[NodePublic, bytes]:
        """Read a frame, which must be a RecvPacket; return its source and data."""
        frame_type, payload = self.read_frame()
        assert frame_type == RECV, f"frame {frame_type:#x} {payload!r}"
        return NodePublic(payload[:32]), payload[32:]

    def sync(self) -> list[tuple[int, bytes]]:
        """Ping; return the frames before the pong, which follows all earlier frames' effects."""
        self.send_frame(PING, b"syncsync")
        frames = []
        while (received := self.read_frame()) != (PONG, b"syncsync"):
            frames.append(received)
        return frames

    def is_closed(self) -> bool:
        """Return whether the relay ends the connection without further bytes."""
        return self.read_to_end() == b""

    # Login

    def upgrade(self, relay: NodePublic, headers: Iterable[str] = ()) -> None:
        """Ask for the upgrade and check the answer up to ServerKey."""
        self.send(upgrade_request(*headers))
        if FAST_START not in headers:
            assert self.read_head().startswith(b"HTTP/1.1 101 ")
        assert self.read_frame() == (SERVER_KEY, MAGIC + relay.raw)

    def login(
        self,
        relay: NodePublic,
        *,
        key: NodePrivate | None = None,
        json: bytes = b'{"version":2,"CanAckPings":true}',
        headers: Iterable[str] = (),
        server_info: bytes = b'{"version":2}',
    ) -> None:
        """Upgrade and log in; return when the relay's ServerInfo has been read."""
        self.key = key or self.key
        self.upgrade(relay, headers)
        self.send(client_info(self.key, relay, json))
        self.read_server_info(relay, server_info)

    def read_server_info(self, relay: NodePublic, expected: bytes = b'{"version":2}') -> None:
        """Read the frame that ends the login and check its contents."""
        frame_type, payload = self.read_frame()
        assert frame_type == SERVER_INFO
        assert self.key.open_from(relay, payload) == expected
