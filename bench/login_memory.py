"""Resident memory of a relay per connection that is not logged in, by stage.

    python bench/login_memory.py [--connections 1000] [--stage NAME …] [--derper PATH]

Each stage has a fresh relay with TLS. Its memory is read before the connections, while all of them
are open, and 15 s after they have left. With `--derper` derper is measured, too.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.relays import Relay, derper, fastderp, running
from fastderp.loadgen.process import Process
from fastderp.tls.context import ClientContext
from fastderp.tls.handshake import Handshake
from fastderp.wire.keys import NodePrivate
from fastderp.wire.login import ClientInfo, client_info_frame, parse_server_key
from fastderp.wire.protocol import HEADER, HEADER_SIZE

REQUEST = (
    b"GET /derp HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
    b"Derp-Fast-Start: 1\r\n\r\n"
)
# The memory is stable this long after the last byte.
SETTLE_S = 1.0
COMES_BACK_S = 15.0
RECORD_BYTES = 16384

Stage = Callable[["Client"], None]


class Client:
    """One connection of the load; it uses TLS after `secure`."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 30)

    def secure(self) -> None:
        """Do a TLS 1.3 handshake."""
        handshake = Handshake(ClientContext(verify=False), "127.0.0.1")
        while not handshake.step():
            self.sock.sendall(handshake.take_output())
            handshake.feed(self.sock.recv(65536))
        self.sock.sendall(handshake.take_output())
        self.records = handshake.records()

    def send(self, data: bytes) -> None:
        """Send in records."""
        self.sock.sendall(self.records.seal(data))

    def read_frame(self) -> tuple[int, bytes]:
        """Return the type and payload of the relay's next frame, which arrives alone."""
        data = self.records.open(b"")
        while len(data) < HEADER_SIZE or len(data) < HEADER_SIZE + HEADER.unpack_from(data)[1]:
            data += self.records.open(self.sock.recv(65536))
        return data[0], data[HEADER_SIZE:]


def begun_hello(n_sent: int, n_announced: int) -> Stage:
    """Send the first `n_sent` bytes of a ClientHello of `n_announced`."""
    body = b"\x01" + n_announced.to_bytes(3, "big") + b"\x03\x03" + bytes(n_announced)
    records = b"".join(
        b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
        for piece in (
            body[at : at + RECORD_BYTES] for at in range(0, 4 + n_announced, RECORD_BYTES)
        )
    )

    def send(client: Client) -> None:
        client.sock.sendall(records[:n_sent])

    return send


def nothing(client: Client) -> None:
    """Stay silent."""


def answered_hello(client: Client) -> None:
    """Send a ClientHello, and nothing after the relay's answer."""
    handshake = Handshake(ClientContext(verify=False), "127.0.0.1")
    handshake.step()
    client.sock.sendall(handshake.take_output())
    client.sock.recv(1)


def handshake(client: Client) -> None:
    """Finish the TLS handshake."""
    client.secure()


def begun_request(client: Client) -> None:
    """Send a request without its end."""
    client.secure()
    client.send(REQUEST[:-2])


def request(client: Client) -> None:
    """Ask for the upgrade and read the relay's key."""
    client.secure()
    client.send(REQUEST)
    client.read_frame()


def login(client: Client) -> None:
    """Log in."""
    client.secure()
    client.send(REQUEST)
    server_key = parse_server_key(*client.read_frame())
    private = NodePrivate.generate()
    info = ClientInfo(can_ack_pings=True)
    client.send(client_info_frame(private.public_key, private.box(server_key), info))
    client.read_frame()


STAGES: dict[str, Stage] = {
    "TCP only": nothing,
    "ClientHello begun, 100 bytes": begun_hello(100, 512),
    "ClientHello begun, 16 KB": begun_hello(16_000, 16_300),
    "ClientHello begun, 115 KB": begun_hello(115_000, 120_000),
    "ClientHello answered": answered_hello,
    "handshake done": handshake,
    "request begun": begun_request,
    "request read": request,
    "logged in": login,
}


def measure(relay: Relay, stage: Stage, n_connections: int) -> tuple[float, float, int]:
    """Return KiB per connection, MiB left after their end, connections closed by the relay."""
    with running(relay, tls=True) as started:
        port = int(started.url.rpartition(":")[2].rstrip("/").partition("/")[0])
        first = Client(port)
        login(first)
        time.sleep(SETTLE_S)
        process = Process(started.pid)
        before = process.rss_kib()
        clients = []
        for _ in range(n_connections):
            client = Client(port)
            try:
                stage(client)
            except (OSError, ssl.SSLError):
                pass  # counted below
            clients.append(client)
        time.sleep(SETTLE_S)
        during = process.rss_kib()
        n_closed = sum(is_closed(client.sock) for client in clients)
        for client in clients:
            client.sock.close()
        time.sleep(COMES_BACK_S)
        after = process.rss_kib()
        first.sock.close()
    return (during - before) / n_connections, (after - before) / 1024, n_closed


def is_closed(sock: socket.socket) -> bool:
    """Return whether the relay has ended a connection."""
    sock.setblocking(False)
    try:
        while data := sock.recv(65536):
            del data
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--stage", action="append", choices=list(STAGES))
    parser.add_argument("--derper", metavar="PATH", help="measure this derper, too")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    relays = [fastderp(), *([derper(arguments.derper)] if arguments.derper else [])]
    print(f"{arguments.connections} connections, {os.uname().release}")
    print(f"{'relay':18} {'stage':30} {'KiB each':>9} {'MiB left':>9} {'closed':>7}")
    for relay in relays:
        for name in arguments.stage or STAGES:
            kib, left, n_closed = measure(relay, STAGES[name], arguments.connections)
            subject = f"{relay.name + ' ' + relay.version:18} {name:30}"
            print(f"{subject} {kib:9.1f} {left:9.1f} {n_closed:7}", flush=True)


if __name__ == "__main__":
    main()
