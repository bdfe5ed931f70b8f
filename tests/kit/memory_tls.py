"""TLS by Python's `ssl` in memory: any number of records, also broken ones, go into one segment."""

from __future__ import annotations

import socket
import ssl


class MemoryTls:
    """One end of a TLS connection, without I/O."""

    def __init__(self, context: ssl.SSLContext, *, server: bool = False) -> None:
        self._source, self._sink = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._end = context.wrap_bio(self._source, self._sink, server_side=server)

    def take_output(self) -> bytes:
        return self._sink.read()

    def step(self, wire: bytes = b"") -> bool:
        """Continue the handshake; return whether it is done."""
        self._source.write(wire)
        try:
            self._end.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def seal(self, data: bytes) -> bytes:
        self._end.write(data)
        return self.take_output()

    def broken(self) -> bytes:
        """Return a record that does not authenticate."""
        record = self.seal(b"broken")
        return record[:-1] + bytes([record[-1] ^ 1])

    def close_notify(self) -> bytes:
        try:
            self._end.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self.take_output()

    def open(self, wire: bytes) -> bytes:
        """Return what can be read now; b"" may also be the end. Raises ssl.SSLError."""
        self._source.write(wire)
        try:
            return self._end.read(65536)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return b""


class MemoryTlsSocket:
    """A connected socket with TLS that can keep what it would send, for a `Peer`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self.tls = MemoryTls(context)
        self._held: bytes | None = None
        done = self.tls.step()
        while not done:
            sock.sendall(self.tls.take_output())
            done = self.tls.step(sock.recv(65536))
        sock.sendall(self.tls.take_output())

    def hold(self) -> None:
        """Keep what is sent until `release`."""
        self._held = b""

    def release(self, wire: bytes = b"") -> None:
        """Send what is kept, and `wire` behind it, in one write."""
        assert self._held is not None
        self._sock.sendall(self._held + wire)
        self._held = None

    def sendall(self, data: bytes) -> None:
        if self._held is None:
            self._sock.sendall(self.tls.seal(data))
        else:
            self._held += self.tls.seal(data)

    def recv(self, n: int) -> bytes:
        """Return data; b"" at the end. Raises ssl.SSLError for an alert."""
        data = self.tls.open(b"")
        while not data and (wire := self._sock.recv(n)):
            data = self.tls.open(wire)
        return data

    def close(self) -> None:
        self._sock.close()
