"""An HTTP service over TCP or a unix socket that answers with any bytes and records requests."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answer = bytes | Callable[[bytes], bytes]


def ok(body: bytes | object) -> bytes:
    """Build a 200 with a body, JSON unless it is bytes."""
    return response(200, body if isinstance(body, bytes) else json.dumps(body).encode())


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Build a response of any status."""
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class Service:
    """A running service. `answer` is bytes, or a function of the request; b"" sends no answer."""

    listener: socket.socket
    answer: Answer
    tls: ssl.SSLContext | None = None
    requests: list[bytes] = field(default_factory=list)
    held: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The service's URL over TCP; by name with TLS."""
        where = "https://localhost" if self.tls else "http://127.0.0.1"
        return f"{where}:{self.listener.getsockname()[1]}/admit"

    def questions(self) -> list[Any]:
        """Return the JSON of the requests' bodies."""
        return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in self.requests]

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            self.held.append(connection)
            while request := _read_request(connection):
                self.requests.append(request)
                answer = self.answer(request) if callable(self.answer) else self.answer
                connection.sendall(answer)
                if not answer.startswith(b"HTTP/1.1 ") and answer:
                    break
            else:
                connection.close()
            if request and answer:
                connection.close()


def _read_request(connection: socket.socket) -> bytes:
    """Read a request, head and body; b"" at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1]
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    while len(body) < int(lengths[0] if lengths else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def serving(
    answer: Answer, path: Path | None = None, *, tls: ssl.SSLContext | None = None
) -> Iterator[Service]:
    """Run a service in the block: over TCP, with TLS if `tls` is set, or at a unix socket."""
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
    service = Service(listener, answer, tls)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        # `close` alone leaves the thread in accept.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in service.held:
            connection.close()
        thread.join(10)
