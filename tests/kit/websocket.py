"""A peer that speaks DERP over WebSocket; its RFC 6455 shares no code with the relay."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
from collections.abc import Iterable

from fastderp.wire.keys import NodePublic
from tests.kit.peer import MAGIC, SERVER_KEY, Peer

CONTINUATION, TEXT, BINARY = 0, 1, 2
CLOSE, PING, PONG = 8, 9, 10
FIN = 0x80

MESSAGE_BYTES = 128 * 1024


def opening_request(key: str = "dGhlIHNhbXBsZSBub25jZQ==", **changed: str | None) -> bytes:
    """Build an opening handshake; `changed` replaces headers or drops them (None)."""
    headers = {
        "Host": "derp.example.com",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": "derp",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join(["GET /derp HTTP/1.1", *lines, "", ""]).encode()


def message(data: bytes, first: int = FIN | BINARY, masked: bool = True) -> bytes:
    """Build one WebSocket frame; `first` is its first byte."""
    size = len(data)
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack(">BB", first, mask_bit | size)
    elif size < 65536:
        head = struct.pack(">BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack(">BBQ", first, mask_bit | 127, size)
    if not masked:
        return head + data
    mask = os.urandom(4)
    return head + mask + _xor(data, mask)


def _xor(data: bytes, mask: bytes) -> bytes:
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(len(data))


class WebSocketPeer(Peer):
    """A Peer over a WebSocket; once it is open, `send` and `read` are of the bytes inside."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.controls: list[tuple[int, bytes]] = []
        self.message_sizes: list[int] = []
        self._opened = False
        self._raw = b""

    def open(self, request: bytes | None = None) -> bytes:
        """Do the opening handshake; return the head of the response."""
        key = base64.b64encode(os.urandom(16)).decode()
        super().send(request or opening_request(key))
        head = self.read_head()
        assert head.startswith(b"HTTP/1.1 101 "), head
        if request is None:
            accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            assert b"sec-websocket-accept: " + base64.b64encode(accept).lower() in head.lower()
        self._opened = True
        self._raw, self._received = self._received, b""
        return head

    def upgrade(self, relay: NodePublic, headers: Iterable[str] = ()) -> None:
        """Open the WebSocket and check the first frame inside; `headers` must be empty."""
        self.open()
        assert self.read_frame() == (SERVER_KEY, MAGIC + relay.raw)

    def send(self, data: bytes) -> None:
        """Send bytes, in binary messages once the WebSocket is open."""
        if not self._opened:
            super().send(data)
            return
        for start in range(0, len(data), MESSAGE_BYTES):
            self.send_raw(message(data[start : start + MESSAGE_BYTES]))

    def send_raw(self, data: bytes) -> None:
        """Send bytes below the WebSocket."""
        self.sock.sendall(data)

    def closing(self) -> tuple[int, bytes]:
        """Read to the end; return code and reason of the relay's close frame."""
        self.read_to_end()
        assert self.controls and self.controls[-1][0] == CLOSE, self.controls
        payload = self.controls[-1][1]
        return (int.from_bytes(payload[:2]), payload[2:]) if payload else (1005, b"")

    def _receive(self) -> bytes:
        """Return the next message, b"" at the end; control frames are appended to `controls`."""
        if not self._opened:
            return super()._receive()
        while True:
            head = self._take_raw(2)
            if head is None:
                return b""
            size = head[1]
            if size >= 126:
                extended = self._take_raw(2 if size == 126 else 8)
                assert extended is not None
                size = int.from_bytes(extended)
            payload = self._take_raw(size)
            assert payload is not None, "the relay stopped in the middle of a message"
            if head[0] == FIN | BINARY:
                self.message_sizes.append(size)
                return payload
            self.controls.append((head[0] & 0x7F, payload))

    def _take_raw(self, n_bytes: int) -> bytes | None:
        while len(self._raw) < n_bytes:
            data = super()._receive()
            if not data:
                return None
            self._raw += data
        data, self._raw = self._raw[:n_bytes], self._raw[n_bytes:]
        return data
