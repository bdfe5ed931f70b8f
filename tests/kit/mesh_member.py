"""A member of a region made by hand, to which the relay links."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from fastderp.wire.keys import MeshKey, NodePrivate
from fastderp.wire.login import open_client_info
from tests.kit.peer import MAGIC, PRESENT, SERVER_KEY, WATCH, frame
from tests.kit.relay import PATIENCE_S, Relay

SECRET = MeshKey.generate()


class Member:
    """A relay made by hand: it answers one login and then sends the test's frames.

    tls: accept TLS with this context.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.key = NodePrivate.generate()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self._tls = tls
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}/derp"
        self.sock: socket.socket

    def accept(self) -> None:
        """Accept a connection and read its HTTP request."""
        self.sock, _ = self._listener.accept()
        self.sock.settimeout(PATIENCE_S)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_side=True)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, "the relay has hung up"
            head += byte

    def welcome(self, secret: MeshKey = SECRET) -> None:
        """Accept a connection and log it in; WatchConns must follow its ClientInfo at once."""
        self.accept()
        self.sock.sendall(
            b"HTTP/1.1 101 x\r\n\r\n" + frame(SERVER_KEY, MAGIC + self.key.public_key.raw)
        )
        self.client = open_client_info(self.key, self.read_frame()[1])
        assert self.client.info.mesh_key == secret
        assert self.read_frame() == (WATCH, b"")
        self.sock.sendall(self.client.server_info_frame())

    def present(self, key: bytes) -> bytes:
        """Return a PeerPresent."""
        return frame(PRESENT, key + bytes(19))

    def read_frame(self) -> tuple[int, bytes]:
        """Read a frame of the relay."""
        frame_type, length = struct.unpack(">BI", self._read(5))
        return frame_type, self._read(length)

    def is_left(self) -> bool:
        """Return whether the other side ends the connection."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self) -> None:
        """Close the connection and the listener."""
        self._listener.close()
        if hasattr(self, "sock"):
            self.sock.close()

    def _read(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            piece = self.sock.recv(n_bytes - len(data))
            assert piece, "the relay has hung up"
            data += piece
        return data


@contextmanager
def member_of(relay: Relay, tls: ssl.SSLContext | None = None) -> Iterator[Member]:
    """Yield the only member of the relay's region."""
    member = Member(tls)
    relay.call(relay.server.set_mesh_peers, [member.url])
    try:
        yield member
    finally:
        member.close()
