"""A relay under test: `fastderp.server.Server` on an event loop in its own thread.

Tests are plain blocking code, and can block or query the relay's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
import uvloop

from fastderp.server import server as server_module
from fastderp.server.accept.listener import Listener
from fastderp.server.certificates.manual import manual_certificate
from fastderp.server.certificates.metacert import meta_cert
from fastderp.server.http.routes import Routes
from fastderp.server.http.tunnel import Tunnels
from fastderp.server.server import Server
from fastderp.server.settings import ProxySettings
from fastderp.tls.context import ServerContext
from fastderp.util.token_bucket import TokenBucket
from fastderp.wire.keys import NodePublic
from tests.kit.peer import Peer
from tests.kit.websocket import WebSocketPeer

T = TypeVar("T")

# Longer than any delay on a busy machine, and shorter than the limit of a test.
PATIENCE_S = 30.0

RAW_TRANSPORTS = ("plain", "TLS 1.2", "TLS 1.3")
WEBSOCKETS = ("WebSocket", "WebSocket over TLS 1.2", "WebSocket over TLS 1.3")
TRANSPORTS = (*RAW_TRANSPORTS, "WebSocket")
LOOPS = ("uvloop", "asyncio")


@dataclass(frozen=True)
class Setup:
    """The transport and event loop of a relay."""

    transport: str = "plain"
    loop: str = "uvloop"

    def __str__(self) -> str:
        return f"{self.transport} on {self.loop}"

    @property
    def tls(self) -> str:
        """Return the TLS version; "" without TLS."""
        return self.transport.partition("TLS ")[2]

    @property
    def websocket(self) -> bool:
        """Return whether clients open a WebSocket instead of the raw upgrade."""
        return self.transport in WEBSOCKETS


EVERY_SETUP = [Setup(transport, loop) for transport in TRANSPORTS for loop in LOOPS]
EVERY_RAW_SETUP = [Setup(transport, loop) for transport in RAW_TRANSPORTS for loop in LOOPS]
EVERY_WEBSOCKET_SETUP = [Setup(transport, loop) for transport in WEBSOCKETS for loop in LOOPS]

without_websocket = pytest.mark.parametrize("relay", EVERY_RAW_SETUP, indirect=True, ids=str)
"""For tests of what comes before or instead of a WebSocket."""


class Relay:
    """A running relay with one listener on loopback for IPv4 and IPv6."""

    def __init__(
        self, setup: Setup, server: Server, listener: Listener, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.setup = setup
        self.server = server
        self.listener = listener
        self.port = listener.port
        self._loop = loop

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the relay's loop; return its result."""

        async def caller() -> T:
            return function(*args)

        return self.run(caller())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the relay's loop; return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def metrics(self) -> dict[str, Any]:
        """Return the relay's metrics by name."""
        return self.call(self.server.metrics)

    def refused(self) -> dict[str, int]:
        """Return the count of connections that ended before their login, by stage and reason."""
        return dict(self.metrics()["fastderp_closed_total"])

    def connect(self, host: str = "127.0.0.1", timeout_s: float = PATIENCE_S) -> Peer:
        """Connect, and do the TLS handshake if the relay uses TLS; send no HTTP."""
        kind = WebSocketPeer if self.setup.websocket else Peer
        return kind.connect(host, self.port, client_context(self.setup), timeout_s)

    def connect_tcp(self, host: str = "127.0.0.1") -> Peer:
        """Connect without TLS, also to a relay that uses TLS."""
        return Peer.connect(host, self.port, None, PATIENCE_S)

    def login(self, **info: Any) -> Peer:
        """Connect and log in; arguments are those of `Peer.login`."""
        peer = self.connect()
        peer.login(self.server.public_key, **info)
        return peer

    def wait_connected(self, key: NodePublic, connected: bool = True) -> None:
        """Wait until the relay has, or no longer has, a client with this key."""
        eventually(lambda: self.server.is_client_connected(key) is connected)


@contextlib.contextmanager
def running(
    setup: Setup,
    certificates: Path,
    *,
    port: int = 0,
    routes: Routes | None = None,
    idle_s: float = 30.0,
    tunnels: Tunnels | None = None,
    proxies: ProxySettings = ProxySettings(),
    accept_limiter: TokenBucket | None = None,
    **server: Any,
) -> Iterator[Relay]:
    """Run a relay while the block lasts; further arguments go to `Server`."""
    started = threading.Event()
    outcome: list[Relay | BaseException] = []

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            # On a busy machine, a peer that does not read yet is not closed and loses no packet.
            patient = partial(vars(server_module)["Plane"], backlog_age_s=0)
            with mock.patch.object(server_module, "Plane", patient):
                relay = Server(**{"workers": 2, "write_timeout": PATIENCE_S, **server})
            listener = relay.listen(
                "",
                port,
                # TCP would drop peers that do not read for so long, as they do on a busy machine.
                user_timeout_s=0,
                tls=_tls(setup, relay, certificates),
                routes=routes,
                idle_s=idle_s,
                tunnels=tunnels,
                proxies=proxies,
                accept_limiter=accept_limiter,
            )
        except BaseException as error:
            outcome.append(error)
            started.set()
            raise
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        outcome.append(Relay(setup, relay, listener, loop))
        started.set()
        await stop.wait()
        if tunnels is not None:
            tunnels.close()
        await relay.close()

    stops: list[Callable[[], Any]] = []
    runner = uvloop.run if setup.loop == "uvloop" else asyncio.run
    thread = threading.Thread(target=lambda: runner(serve()), name="relay under test")
    thread.start()
    started.wait(PATIENCE_S)
    [first] = outcome
    if isinstance(first, BaseException):
        raise first
    try:
        yield first
    finally:
        stops[0]()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the relay did not close"


def client_context(setup: Setup) -> ssl.SSLContext | None:
    """Make a client's context for such a relay: that TLS version only, any certificate."""
    if not setup.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if setup.tls == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _tls(setup: Setup, server: Server, directory: Path) -> ServerContext | None:
    if not setup.tls:
        return None
    certificate = manual_certificate(directory, "127.0.0.1")
    return ServerContext([*certificate.chain, meta_cert(server.public_key.hex)], certificate.key)


def eventually(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds; fail at the deadline."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
