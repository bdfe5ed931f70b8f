"""Drains a relay with many clients to the other relay of its region; `bench.life region` runs it.

The clients do what tailscale's do: when a connection ends they dial the region's nodes in order, and
the first that accepts TCP has to log them in. Keys and boxes are made before, and one thread serves
all clients, so that the relays get the CPU.
"""

from __future__ import annotations

import resource
import selectors
import signal
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.relay_process import RelayProcess, relay
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic

REQUEST = (
    b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
    b"Derp-Fast-Start: 1\r\n\r\n"
)
CLIENT_INFO, SERVER_INFO, RESTARTING = 2, 3, 0x15
RETRY_S = 0.1
AT_ONCE = 64


@dataclass
class RegionResult:
    """The result of `drain_to_a_region`; seconds are counted from SIGTERM."""

    n_clients: int
    drain_s: float
    n_untold: int
    n_refused: int
    n_back: int
    last_back_s: float
    logins_per_s: list[int]
    exit_code: int
    end_s: float

    @property
    def mean(self) -> float:
        """The mean number of logins in the seconds in which there were any."""
        seconds = [n for n in self.logins_per_s if n]
        return sum(seconds) / max(1, len(seconds))

    @property
    def problems(self) -> list[str]:
        """The failed checks."""
        found = []
        if self.n_untold or self.n_refused:
            found.append(f"{self.n_untold} clients were not told, {self.n_refused} logins refused")
        if self.n_back != self.n_clients or self.last_back_s > 1.5 * self.drain_s:
            found.append(f"{self.n_back} are back, the last after {self.last_back_s} s")
        if max(self.logins_per_s, default=0) > 2 * self.mean:
            found.append(
                f"{max(self.logins_per_s)} logins in one second, {self.mean:.0f} on average"
            )
        if self.exit_code:
            found.append(f"exit code {self.exit_code}")
        return found


class Client:
    """One client: its login for each relay, and its connection."""

    __slots__ = ("infos", "is_back", "logged_in", "node", "sock", "told", "unread")

    def __init__(self, relays: Iterable[NodePublic]) -> None:
        key = NodePrivate.generate()
        self.infos = [
            REQUEST + frame(CLIENT_INFO, key.public_key.raw + key.seal_to(relay, b'{"version":2}'))
            for relay in relays
        ]
        self.sock: socket.socket | None = None
        self.node = 0
        self.logged_in = False
        self.told = False
        self.is_back = False
        self.unread = b""


def frame(frame_type: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">BI", frame_type, len(payload)) + payload


class Crowd:
    """All clients, served by one thread."""

    def __init__(self, ports: list[int], clients: list[Client]) -> None:
        self.clients = clients
        self.n_refused = 0
        self.back_s: list[float] = []
        self._ports = ports
        self._selector = selectors.EpollSelector()
        self._retries: list[tuple[float, Client]] = []

    def dial(self, client: Client, node: int = 0) -> None:
        """Begin to connect to a node; the next one follows when it refuses."""
        if node == len(self._ports):
            self._retries.append((time.monotonic() + RETRY_S, client))
            return
        sock = socket.socket()
        sock.setblocking(False)
        client.sock, client.node, client.logged_in, client.unread = sock, node, False, b""
        sock.connect_ex(("127.0.0.1", self._ports[node]))
        self._selector.register(sock, selectors.EVENT_WRITE, client)

    def _connected(self, client: Client) -> None:
        """Log in on a new connection, or dial the next node."""
        assert client.sock is not None
        if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop(client)
            self.dial(client, client.node + 1)
        else:
            client.sock.send(client.infos[client.node])
            self._selector.modify(client.sock, selectors.EVENT_READ, client)

    def _drop(self, client: Client) -> None:
        assert client.sock is not None
        self._selector.unregister(client.sock)
        client.sock.close()

    def serve(self, timeout_s: float) -> None:
        """Read what has come."""
        for key, _ in self._selector.select(timeout_s):
            if key.events == selectors.EVENT_WRITE:
                self._connected(key.data)
            else:
                self._read(key.data)
        now_s = time.monotonic()
        due = [client for at_s, client in self._retries if at_s <= now_s]
        self._retries = [retry for retry in self._retries if retry[0] > now_s]
        for client in due:
            self.dial(client)

    def _read(self, client: Client) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if data:
            client.unread += data
            self._take_frames(client)
            return
        self._drop(client)
        if not client.logged_in:
            self.n_refused += 1
            self._retries.append((time.monotonic() + RETRY_S, client))
        else:
            self.dial(client)

    def _take_frames(self, client: Client) -> None:
        while len(client.unread) >= 5:
            frame_type, size = struct.unpack_from(">BI", client.unread)
            if frame_type > 0x40 or len(client.unread) < 5 + size:
                return  # HTTP, or incomplete
            client.unread = client.unread[5 + size :]
            client.told |= frame_type == RESTARTING
            if frame_type == SERVER_INFO:
                client.logged_in = True
                if client.node:
                    client.is_back = True
                    self.back_s.append(time.monotonic())

    def close(self) -> None:
        for client in self.clients:
            if client.sock is not None:
                client.sock.close()
        self._selector.close()


def drain_to_a_region(n_clients: int, drain_s: float) -> RegionResult:
    """Log clients in at one relay of a region, drain it, and measure their logins at the other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, n_clients + 100):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        (directory / "mesh.key").write_text(MeshKey.generate().text)
        common = ["-a", "127.0.0.1:0", "-stun=false", "-workers=1"]
        common += ["-mesh-psk-file", str(directory / "mesh.key")]
        staying = stack.enter_context(relay(*common, "-c", str(directory / "staying")))
        member = f"-mesh-with=http://127.0.0.1:{staying.port}/derp"
        flags = ["-c", str(directory / "leaving"), f"-drain-time={drain_s}s", member]
        leaving = stack.enter_context(relay(*common, *flags))
        clients = [Client((leaving.public_key, staying.public_key)) for _ in range(n_clients)]
        crowd = Crowd([leaving.port, staying.port], clients)
        stack.callback(crowd.close)
        connect(crowd)
        return drained(crowd, leaving, drain_s)


def connect(crowd: Crowd) -> None:
    """Log all clients in at the first relay."""
    n_started = 0
    while not all(client.logged_in for client in crowd.clients):
        n_logged_in = sum(client.logged_in for client in crowd.clients[:n_started])
        while n_started < len(crowd.clients) and n_started - n_logged_in < AT_ONCE:
            crowd.dial(crowd.clients[n_started])
            n_started += 1
        crowd.serve(0.01)
    crowd.n_refused = 0


def drained(crowd: Crowd, leaving: RelayProcess, drain_s: float) -> RegionResult:
    """Drain the relay; wait until all clients are back."""
    leaving.signal(signal.SIGTERM)
    began_s = time.monotonic()
    end_s = 0.0
    n = len(crowd.clients)
    while time.monotonic() < began_s + 3 * drain_s + 10:
        crowd.serve(0.02)
        if not end_s and leaving.process.poll() is not None:
            end_s = time.monotonic() - began_s
        if end_s and len(crowd.back_s) >= n:
            break
    per_s = Counter(int(at_s - began_s) for at_s in crowd.back_s)
    return RegionResult(
        n_clients=n,
        drain_s=drain_s,
        n_untold=sum(not client.told for client in crowd.clients),
        n_refused=crowd.n_refused,
        n_back=sum(client.is_back for client in crowd.clients),
        last_back_s=round(max(crowd.back_s, default=began_s) - began_s, 2),
        logins_per_s=[per_s[second] for second in range(max(per_s, default=0) + 1)],
        exit_code=leaving.process.wait(60),
        end_s=round(end_s, 2),
    )
