"""The peer of a measured client: a relay's login, then a sink or a source of packets.

It costs little, so that the client is measured: frames are counted by their bytes, and its frames
are encoded in advance. Each connection has one blocking thread.
`python -m bench.measuring_peer [CERTIFICATE-DIRECTORY]` prints its URL. The path gives the purpose
of a connection: `/send?n=1000&size=1400` or `/recv?n=1000&size=1400`, from the client's view.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.lab import SUITE
from fastderp.server.certificates.manual import certificate_files, manual_certificate
from fastderp.wire import login
from fastderp.wire.keys import NodePrivate
from fastderp.wire.protocol import HEADER, HEADER_SIZE, KEY_SIZE, FrameType, frame

CHUNK_BYTES = 256 << 10
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
SOURCE = NodePrivate.generate().public_key


class Connection:
    """One measured client."""

    def __init__(self, sock: socket.socket, key: NodePrivate) -> None:
        """Act on this connection as the relay with `key`."""
        self._sock = sock
        self._key = key
        self._unread = b""

    def serve(self) -> None:
        """Log the client in and serve its path."""
        head = self._read_until(b"\r\n\r\n")
        url = urlsplit(head.split(b" ", 2)[1].decode())
        query = parse_qs(url.query)
        n, size = int(query["n"][0]), int(query["size"][0])
        self._sock.sendall(UPGRADED + login.server_key_frame(self._key.public_key))
        _, length = HEADER.unpack(self._read(HEADER_SIZE))
        client = login.open_client_info(self._key, self._read(length))
        self._sock.sendall(client.server_info_frame())
        if url.path == "/send":
            self._sink(n * (HEADER_SIZE + KEY_SIZE + size))
            self._sock.sendall(packet(b"done"))
        else:
            self._source(n, packet(bytes(size)))
        while self._sock.recv(CHUNK_BYTES):
            pass

    def _sink(self, n_bytes: int) -> None:
        n_bytes -= len(self._unread)
        chunk = bytearray(CHUNK_BYTES)
        while n_bytes > 0:
            received = self._sock.recv_into(chunk)
            if not received:
                raise EOFError("the client left before it had sent everything")
            n_bytes -= received

    def _source(self, n: int, one: bytes) -> None:
        at_once = max(1, CHUNK_BYTES // len(one))
        batch = one * at_once
        while n > 0:
            self._sock.sendall(batch if n >= at_once else one * n)
            n -= at_once

    def _read(self, n_bytes: int) -> bytes:
        while len(self._unread) < n_bytes:
            self._receive()
        data, self._unread = self._unread[:n_bytes], self._unread[n_bytes:]
        return data

    def _read_until(self, end: bytes) -> bytes:
        while end not in self._unread:
            self._receive()
        return self._read(self._unread.index(end) + len(end))

    def _receive(self) -> None:
        data = self._sock.recv(CHUNK_BYTES)
        if not data:
            raise EOFError("the client left before its login")
        self._unread += data


def packet(data: bytes) -> bytes:
    """Return a complete RecvPacket frame."""
    return frame(FrameType.RECV_PACKET, SOURCE.raw, data)


def main(certificates: str = "") -> None:
    """Serve until standard input ends; over TLS with a certificate in that directory."""
    key = NodePrivate.generate()
    context: ssl.SSLContext | None = None
    if certificates:
        manual_certificate(Path(certificates), "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate_files(Path(certificates), "127.0.0.1"))
        # All measured clients prefer SUITE; this peer would prefer a larger key.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(sock: socket.socket) -> None:
        try:
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True)
                if (cipher := sock.cipher()) is None or cipher[0] != SUITE:
                    raise EOFError(f"the client chose {cipher}, which is not comparable")
            with sock:
                Connection(sock, key).serve()
        except (OSError, EOFError) as error:
            print(f"measuring peer: {error}", file=sys.stderr)

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    scheme = "http" if context is None else "https"
    print(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
