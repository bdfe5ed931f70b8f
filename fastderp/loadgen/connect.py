"""Clients of a relay: prepared in Python, logged in by native code, taken over by the load engine.

Unlike in `fastderp.client`, a login ends right after ServerInfo. The caller's thread runs this
module, which is not on the measured path.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from fastderp.errors import DialError, ProtocolError
from fastderp.loadgen.hello import client_hello
from fastderp.loadgen.logins import Logins
from fastderp.loadgen.scenario import LOGINS_AT_ONCE
from fastderp.tls.context import ClientContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake
from fastderp.tls.record import SUITES, RecordLayer
from fastderp.util.net import bracketed, host_bytes
from fastderp.util.reasons import errno_text
from fastderp.wire.keys import Box, NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo, client_info_frame, open_server_info, parse_server_key
from fastderp.wire.protocol import HEADER, HEADER_SIZE, MAX_SERVER_KEY_SIZE

LOGIN_LIMIT_S = 30.0
HEAD_LIMIT_BYTES = 16384
# Maximum time that native code runs before Python handles an interrupt.
TURN_S = 0.1
# Linux has about 28,000 ephemeral ports per pair of addresses by default; some may be in use.
CLIENTS_PER_SOURCE = 20_000


@dataclass(frozen=True, slots=True)
class Target:
    """A relay by URL.

    `tls` is the trust for https, None for http; `suites` are the TLS 1.3 suites to offer. Without
    `check_box` the relay's ServerInfo may be anything (for the benchmark's floor).
    """

    host: str
    port: int
    path: str = "/derp"
    tls: ClientContext | None = None
    check_box: bool = True
    suites: Sequence[str] = tuple(SUITES)

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        insecure: bool = False,
        cafile: str | None = None,
        suite: str | None = None,
        check_box: bool = True,
    ) -> Target:
        """Parse `http://host[:port][/path]` or `https://…`; the path is /derp unless given.

        `insecure` accepts any certificate, `cafile` names a PEM file with more roots, `suite` is
        the only TLS 1.3 suite to offer. Raises ValueError for a wrong URL, naming the fault, and
        TlsError for roots that cannot be read.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError(
                f"{url}: not a URL with host and port, such as http://127.0.0.1:3340"
            ) from None
        if port == 0:
            raise ValueError(f"{url}: the port must not be 0")
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{url}: the URL must begin with http:// or https://")
        if not parts.hostname:
            raise ValueError(f"{url}: no host in the URL")
        host = host_bytes(parts.hostname).decode()
        path = parts.path if parts.path not in ("", "/") else "/derp"
        if parts.scheme == "http":
            return cls(host, port or 80, path, None, check_box)
        suites = tuple(SUITES) if suite is None else (suite,)
        trust = ClientContext(verify=not insecure, cafile=cafile, suites=suites)
        return cls(host, port or 443, path, trust, check_box, suites)

    @property
    def authority(self) -> str:
        """host:port in the form of the Host header."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in full."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"

    @property
    def fast_starts(self) -> bool:
        """Whether clients send request and ClientInfo in one write (PROTOCOL §3).

        Real clients do so over TLS, where the relay's certificates carry its key.
        """
        return self.tls is not None

    def request(self, fast_start: bool = False) -> bytes:
        """Return the upgrade request of every client (PROTOCOL §9.3)."""
        head = (
            f"GET {self.path} HTTP/1.1\r\nHost: {self.authority}\r\n"
            "Connection: Upgrade\r\nUpgrade: DERP\r\n"
        )
        return (head + ("Derp-Fast-Start: 1\r\n\r\n" if fast_start else "\r\n")).encode()

    def resolve(self) -> tuple[str, int]:
        """Return the relay's first address. Raises DialError if it has no address."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise DialError(f"{self.url}: {error.strerror}") from error
        host, port = found[0][4][:2]
        return str(host), int(port)


@dataclass(slots=True)
class Joined:
    """A logged-in connection. `unread` is the plaintext read behind ServerInfo."""

    sock: socket.socket
    key: bytes
    unread: bytes = b""
    records: RecordLayer | None = None

    def detach(self) -> int:
        """Return the socket's descriptor, which the caller owns from now on."""
        return self.sock.detach()

    def close(self) -> None:
        """Close the connection unless its descriptor is detached."""
        self.sock.close()


class Crowd:
    """`n` new clients of a relay, with keys and boxes made before they log in.

    A first connection verifies the relay's certificate and gets its key; the clients then recognize
    the relay by its boxes. They connect from `sources` in rotation; without `sources`, to a relay
    on loopback, from as many loopback addresses as the ports require. `rate` limits the logins per
    second, and at most `at_once` are under way. Without `fast_start` each waits for the upgrade's
    answer, as over plain TCP (PROTOCOL §3). With `busy_wait` the load's core never sleeps during
    the logins, so that the relay spends no CPU time on waking it. Raises DialError, naming the
    relay and the cause, when the first connection fails.
    """

    def __init__(
        self,
        target: Target,
        n: int,
        *,
        sources: Sequence[str] = (),
        rate: float = 0.0,
        at_once: int = LOGINS_AT_ONCE,
        fast_start: bool = True,
        busy_wait: bool = False,
    ) -> None:
        address = target.resolve()
        sources = sources or loopback_sources(address[0], n)
        relay = relay_key(target, address, sources[0] if sources else "")
        keys = [NodePrivate.generate() for _ in range(n)]
        boxes = [key.box(relay) for key in keys]
        info = ClientInfo(can_ack_pings=True)
        infos = [
            client_info_frame(key.public_key, box, info)
            for key, box in zip(keys, boxes, strict=True)
        ]
        request: bytes | None = target.request()
        if target.fast_starts and fast_start:
            head, request = target.request(fast_start=True), None
            infos = [head + frame for frame in infos]
        shared = NodePrivate.generate()
        hello = (
            client_hello(target.host, target.suites, shared.public_key.raw) if target.tls else None
        )
        self._target = target
        self._keys = [key.public_key.raw for key in keys]
        self._boxes = boxes
        self._family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._logins = Logins(
                socket_address(*address),
                relay.raw,
                request,
                infos,
                hello=hello,
                hello_key=shared.raw,
                sources=[socket_address(source, 0) for source in sources],
                at_once=at_once,
                rate=rate,
                limit_s=LOGIN_LIMIT_S,
                busy_wait=busy_wait,
            )
        except OSError as error:
            raise DialError(f"{target.url}: {_cause(error)}") from error

    @property
    def logins_per_s(self) -> float:
        """The rate of the logins so far."""
        if not self._logins.seconds:
            return 0.0
        return self._logins.n_logged_in / self._logins.seconds

    def log_in(self, on_joined: Callable[[int], None] = lambda n_joined: None) -> list[Joined]:
        """Log all clients in and return them; after `stop`, those logged in by then.

        `on_joined` gets the number of clients so far. Raises DialError, naming the relay and the
        cause, when a login fails; then no client stays connected.
        """
        try:
            while not self._logins.run(TURN_S):
                on_joined(self._logins.n_logged_in)
            return self._take()
        except (OSError, ProtocolError) as error:
            raise DialError(f"{self._target.url}: {_cause(error)}{_hint(error)}") from error

    def stop(self) -> None:
        """Make `log_in` return soon. Any thread may call it."""
        self._logins.stop()

    def _take(self) -> list[Joined]:
        """Check each client's ServerInfo and take the connections."""
        joined = []
        try:
            for number, descriptor, info, unread, records in self._logins.members():
                sock = socket.socket(
                    self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor
                )
                joined.append(Joined(sock, self._keys[number], unread, records))
                self._check(self._boxes[number], info)
        except BaseException:
            for connection in joined:
                connection.close()
            raise
        return joined

    def _check(self, box: Box, info: bytes) -> None:
        if self._target.check_box:
            open_server_info(box, info[HEADER_SIZE:])


def relay_key(target: Target, address: tuple[str, int], source: str = "") -> NodePublic:
    """Return the key of the relay at `address`, connecting from `source` if given, without a login.

    Raises DialError, naming the relay and the cause, when that fails.
    """
    try:
        with socket.create_connection(
            address, LOGIN_LIMIT_S, (source, 0) if source else None
        ) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _KeyRequest(sock, target).key()
    except (OSError, ProtocolError, TlsError) as error:
        raise DialError(f"{target.url}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no login within {LOGIN_LIMIT_S:.0f} s"
    return errno_text(error) if isinstance(error, OSError) else str(error)


def _hint(error: Exception) -> str:
    """Return the likely cause of a closed login: a relay that sent its key refuses silently."""
    if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
        return "; the benchmark uses new keys: check that the relay admits unknown keys"
    return ""


@dataclass(slots=True)
class _KeyRequest:
    """A connection that ends after the relay's ServerKey."""

    sock: socket.socket
    target: Target
    records: RecordLayer | None = None
    unread: bytearray = field(default_factory=bytearray)

    def key(self) -> NodePublic:
        if self.target.tls:
            self._shake_hands(self.target.tls)
        request = self.target.request()
        self.sock.sendall(self.records.seal(request) if self.records else request)
        head = self._take_head()
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["101"]:
            raise ProtocolError(f"the relay did not upgrade to DERP but answered {status!r}")
        frame_type, length = HEADER.unpack(self._take(HEADER_SIZE))
        if length > MAX_SERVER_KEY_SIZE:
            raise ProtocolError(f"the relay sent a frame of {length} bytes instead of ServerKey")
        return parse_server_key(frame_type, self._take(length))

    def _shake_hands(self, trust: ClientContext) -> None:
        """Begin TLS 1.3, the only version whose keys the load engine can use."""
        handshake = Handshake(trust, self.target.host)
        while not handshake.step():
            self.sock.sendall(handshake.take_output())
            handshake.feed(self._receive())
        self.sock.sendall(handshake.take_output())
        if handshake.version != "TLSv1.3":
            raise ProtocolError(f"a load needs TLS 1.3, but the relay speaks {handshake.version}")
        self.records = handshake.records()
        self.unread += self.records.open()

    def _receive(self) -> bytes:
        data = self.sock.recv(16384)
        if not data:
            raise ConnectionError("the relay closed the connection")
        return data

    def _fill(self) -> None:
        if self.records is not None and self.records.failure is not None:
            raise self.records.failure
        data = self._receive()
        self.unread += self.records.open(data) if self.records else data

    def _take(self, n: int) -> bytes:
        while len(self.unread) < n:
            self._fill()
        data = bytes(self.unread[:n])
        del self.unread[:n]
        return data

    def _take_head(self) -> bytes:
        while (end := self.unread.find(b"\r\n\r\n")) < 0:
            if len(self.unread) > HEAD_LIMIT_BYTES:
                raise ProtocolError(
                    f"the head of the HTTP response exceeds {HEAD_LIMIT_BYTES} bytes"
                )
            self._fill()
        return self._take(end + 4)


def socket_address(host: str, port: int) -> bytes:
    """Return an IP address and port as a C sockaddr (ip(7), ipv6(7))."""
    if ":" in host:
        return struct.pack("=H", socket.AF_INET6) + struct.pack(
            "!HI16sI", port, 0, ipaddress.IPv6Address(host).packed, 0
        )
    return struct.pack("=H", socket.AF_INET) + struct.pack(
        "!H4s8x", port, ipaddress.IPv4Address(host).packed
    )


def loopback_sources(host: str, n: int) -> list[str]:
    """Return 127.0.0.1, .2, … for more clients than one address has ports, else []."""
    n_sources = -(-n // CLIENTS_PER_SOURCE)
    if n_sources < 2 or ":" in host or not ipaddress.ip_address(host).is_loopback:
        return []
    return [str(ipaddress.ip_address("127.0.0.1") + i) for i in range(n_sources)]
