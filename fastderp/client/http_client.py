"""A DERP client that finds, dials and re-dials its relay by itself (PROTOCOL §13).

Any number of tasks use it; one of them receives at a time. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from fastderp.client.client import PING_TIMEOUT_S, Client
from fastderp.errors import BoxError, ConnectionClosed, DialError, ProtocolError
from fastderp.net.metacert import announced_key
from fastderp.net.stream import Stream
from fastderp.net.target import (
    PIN_PREFIX,
    Opened,
    RegionGetter,
    RegionTarget,
    UrlTarget,
    certificate_pin,
)
from fastderp.net.tls import TlsStream
from fastderp.net.upgrade import upgrade
from fastderp.tls.context import ClientContext
from fastderp.wire.derp_map import DerpNode
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.protocol import Message

# From the name look-up to the login.
CONNECT_TIMEOUT_S = 10.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Options:
    """What both constructors of HTTPClient take besides where to connect; `HTTPClient.__init__` explains it."""

    can_ack_pings: bool
    is_prober: bool
    mesh_key: MeshKey | None
    app_name: str
    cafile: str | os.PathLike[str] | None
    insecure: bool
    prefer_ipv6: bool


class HTTPClient:
    """A client of a relay or a region that connects when it is first used.

        async with HTTPClient("https://derp.example.com/derp", key) as client:
            await client.send(peer, b"hello")
            message = await client.recv()

    `connect`, `recv`, `send`, `forward_packet`, `close_peer` and `watch_connection_changes` connect when there is
    no connection; pings, pongs and `note_preferred` never do. A failure closes the connection and is raised; that call is
    not repeated, the next one connects again. Each connection has a generation number, 1 for the
    first. `close` is final: every later call that needs a connection raises ConnectionClosed. PROTOCOL §13.
    """

    def __init__(
        self,
        url: str,
        private_key: NodePrivate,
        *,
        cert_name: str = "",
        dial_host: str = "",
        can_ack_pings: bool = False,
        is_prober: bool = False,
        mesh_key: MeshKey | None = None,
        app_name: str = "",
        cafile: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        prefer_ipv6: bool = False,
    ) -> None:
        """Prepare to use the relay at `url`.

        Args:
            url: http or https with any path; without one it is /derp. With ws or wss DERP goes inside a WebSocket, which some
                ways to a relay need.
            private_key: whose public half the client is reached under.
            cert_name: expected in the certificate instead of the URL's host, or `sha256-raw:` and a hash, as in a DerpNode.
            dial_host: where TCP goes instead of the URL's host.
            can_ack_pings: promise to answer every Ping with `send_pong`.
            is_prober: tell the relay that this client only measures.
            mesh_key: the region's secret, which gives mesh privileges.
            app_name: name of the program, for the relay's statistics.
            cafile: PEM file of roots trusted besides the system's and Let's Encrypt's; read at the first connect over TLS, which raises
                `tls.errors.TlsError`, a DerpError, for one that is of no use.
            insecure: accept any certificate; for tests.
            prefer_ipv6: give IPv6 a head start of 200 ms.

        Raises ValueError for a URL that is of no use, TypeError for a key that is none, such as its text.
        """
        options = _Options(
            can_ack_pings, is_prober, mesh_key, app_name, cafile, insecure, prefer_ipv6
        )
        self._setup(UrlTarget(url, cert_name, dial_host), private_key, options)

    @classmethod
    def for_region(
        cls,
        region_getter: RegionGetter,
        private_key: NodePrivate,
        *,
        use_tls: bool | None = None,
        use_websocket: bool | None = None,
        can_ack_pings: bool = False,
        is_prober: bool = False,
        mesh_key: MeshKey | None = None,
        app_name: str = "",
        cafile: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        prefer_ipv6: bool = False,
    ) -> Self:
        """Prepare to use the first node that answers in the region that `region_getter` returns.

        Args:
            region_getter: asked on every connect; None makes that fail. Its nodes are dialled through the proxies that
                HTTPS_PROXY and NO_PROXY name.
            private_key: whose public half the client is reached under.
            use_tls: False is for tests; unset it follows TS_DEBUG_USE_DERP_HTTP.
            use_websocket: put DERP inside a WebSocket; unset it follows TS_DEBUG_DERP_WS_CLIENT.
            can_ack_pings, is_prober, mesh_key, app_name, cafile, insecure, prefer_ipv6: as for a URL.

        Raises TypeError for a key that is none. What `region_getter` raises goes to whoever wanted to connect. PROTOCOL §13.
        """
        options = _Options(
            can_ack_pings, is_prober, mesh_key, app_name, cafile, insecure, prefer_ipv6
        )
        client = cls.__new__(cls)
        client._setup(RegionTarget(region_getter, use_tls, use_websocket), private_key, options)
        return client

    def _setup(
        self, target: UrlTarget | RegionTarget, private_key: NodePrivate, options: _Options
    ) -> None:
        _check_type("private_key", private_key, NodePrivate)
        if options.mesh_key is not None:
            _check_type("mesh_key", options.mesh_key, MeshKey)
        self._target = target
        self._private_key = private_key
        self._options = options
        self._contexts: dict[tuple[bool, bytes | None], ClientContext] = {}
        self._client: Client | None = None
        self._dialling: asyncio.Task[tuple[Client, int]] | None = None
        self._server_public_key: NodePublic | None = None
        self._generation = 0
        self._preferred = False
        self._watching = False
        self._closed = False

    @property
    def public_key(self) -> NodePublic:
        """The key this client is reached under."""
        return self._private_key.public_key

    @property
    def server_public_key(self) -> NodePublic | None:
        """The key of the relay of the present or latest connection; None before the first."""
        return self._server_public_key

    @property
    def local_addr(self) -> tuple[str, int]:
        """Our address and port. ConnectionClosed when there is no connection."""
        return self._connected().local_addr

    @property
    def generation(self) -> int:
        """How many connections there have been, the present one included."""
        return self._generation

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._client is not None

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def connect(self) -> None:
        """Connect unless there is a connection. DialError says what failed, also when it takes longer than 10 s.

        Does not wait for the relay's answer to the login, so the relay may not know this client yet: others reach it once
        `recv` has returned ServerInfo, and a login that is refused shows as a ConnectionLost there. PROTOCOL §3, §13.
        """
        await self._ready()

    async def send(self, destination: NodePublic, data: bytes) -> None:
        """Send a packet, `data` of at most 65536 bytes, to `destination`, see `Client.send`.

        Raises DialError when there is no connection and none can be made, ConnectionClosed, ConnectionLost or ProtocolError when the
        connection is over, ValueError for a larger packet. PROTOCOL §4, §13.
        """
        await self._do(lambda client: client.send(destination, data))

    async def forward_packet(
        self, source: NodePublic, destination: NodePublic, data: bytes
    ) -> None:
        """Send a packet, `data` of at most 65536 bytes, to `destination` in the name of `source`, see `Client.forward_packet`.

        Raises what `send` does. PROTOCOL §7.6.
        """
        await self._do(lambda client: client.forward_packet(source, destination, data))

    async def close_peer(self, target: NodePublic) -> None:
        """Ask the relay to close the connections of `target`, see `Client.close_peer`. Raises what `send` does. PROTOCOL §5."""
        await self._do(lambda client: client.close_peer(target))

    async def watch_connection_changes(self) -> None:
        """Ask for a PeerPresent of every client, on this connection and all that follow. See `Client.watch_connection_changes`.

        Connects when there is no connection. Raises DialError when none can be made, ConnectionClosed, ConnectionLost or ProtocolError
        when the connection is over; it is asked for all the same on those that follow. PROTOCOL §7.2.
        """
        if self._watching:
            await self.connect()
            return
        self._watching = True
        if self._client is None:
            await self.connect()
        else:
            await self._do(lambda client: client.watch_connection_changes())

    async def note_preferred(self, preferred: bool) -> None:
        """Say whether the relay is this client's home, its `preferred` one, on this connection and all that follow.

        Sent only when it has changed. Raises ConnectionClosed, ConnectionLost or ProtocolError when the connection turns out to be over;
        without one nothing is raised. PROTOCOL §6.6, §13.
        """
        changed, self._preferred = preferred != self._preferred, preferred
        if changed and self._client is not None:
            await self._do(lambda client: client.note_preferred(preferred))

    async def recv(self) -> Message:
        """Wait for the next message; the first of each connection is ServerInfo.

        Raises DialError when there is no connection and none can be made, and what `Client.recv` does: ConnectionClosed at an orderly
        end, ConnectionLost when the connection broke, ProtocolError for frames that end it. PROTOCOL §4, §13.
        """
        return (await self.recv_with_generation())[0]

    async def recv_with_generation(self) -> tuple[Message, int]:
        """Wait for the next message as `recv` does; return it with the generation of the connection it came on. PROTOCOL §13."""
        client, generation = await self._ready()
        return await self._guard(client, client.recv()), generation

    def __aiter__(self) -> Self:
        """Iterate over messages until `close`; failures raise, and iterating again reconnects."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.recv()
        except ConnectionClosed:
            if self._closed:
                raise StopAsyncIteration from None
            raise

    async def ping(self, timeout_s: float = PING_TIMEOUT_S) -> float:
        """Ping the relay and return the seconds until its pong came, see `Client.ping`.

        Raises PingTimeout after `timeout_s` seconds, ConnectionClosed when there is no connection, and what ends the connection
        meanwhile. PROTOCOL §13.
        """
        client = self._connected()
        return await self._guard(client, client.ping(timeout_s))

    async def send_ping(self, data: bytes) -> None:
        """Send a Ping of 8 bytes of `data`. ConnectionClosed without a connection, ValueError for other sizes. PROTOCOL §2."""
        client = self._connected()
        await self._guard(client, client.send_ping(data))

    async def send_pong(self, data: bytes) -> None:
        """Answer a Ping with its 8 bytes of `data`. ConnectionClosed without a connection, ValueError for other sizes. PROTOCOL §2."""
        client = self._connected()
        await self._guard(client, client.send_pong(data))

    async def close(self) -> None:
        """Close for good; everything that waits is told with ConnectionClosed."""
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._client else "not connected"
        return f"<HTTPClient {self.public_key.short} of {self._target}, {state}>"

    async def _do(self, request: Callable[[Client], Awaitable[_T]]) -> _T:
        client, _ = await self._ready()
        return await self._guard(client, request(client))

    async def _guard(self, client: Client, request: Awaitable[_T]) -> _T:
        """Forget a connection on which a request failed, so that the next call makes a new one."""
        try:
            return await request
        except (ConnectionClosed, ProtocolError):
            if self._client is client:
                self._client = None
            client.abort()
            raise

    def _connected(self) -> Client:
        if self._client is None:
            raise ConnectionClosed("the client is closed" if self._closed else "not connected")
        return self._client

    async def _ready(self) -> tuple[Client, int]:
        """Return the connection and its generation, made first when there is none.

        Tasks that come meanwhile share one attempt, and it goes on when one of them gives up.
        """
        if self._closed:
            raise ConnectionClosed("the client is closed")
        if self._dialling is None:
            if self._client is not None:
                return self._client, self._generation
            self._dialling = asyncio.create_task(self._dial())
            self._dialling.add_done_callback(self._dialled)
        try:
            return await asyncio.shield(self._dialling)
        except asyncio.CancelledError:
            if self._closed:
                raise ConnectionClosed("the client is closed") from None
            raise

    def _dialled(self, task: asyncio.Task[tuple[Client, int]]) -> None:
        self._dialling = None
        if not task.cancelled():
            # Seen here, in case everybody who waited for it has given up.
            task.exception()

    async def _dial(self) -> tuple[Client, int]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                client = await self._login()
                self._client = client
                self._generation += 1
                self._server_public_key = client.server_public_key
                # The relay's answer to the login is not waited for.
                await self._guard(client, self._say_again(client))
                return client, self._generation
        except TimeoutError:
            raise DialError(f"no connection to {self._target} in {CONNECT_TIMEOUT_S:g} s") from None

    async def _say_again(self, client: Client) -> None:
        """Tell a new connection what the relay was told before."""
        if self._preferred:
            await client.note_preferred(True)
        if self._watching:
            await client.watch_connection_changes()

    async def _login(self) -> Client:
        opened = await self._target.open(
            prefer_ipv6=self._options.prefer_ipv6, secure_proxy=self._secure_proxy
        )
        stream = opened.stream
        try:
            server_key: NodePublic | None = None
            if opened.https:
                stream, server_key = await self._secure(stream, opened.node)
            if opened.websocket:
                stream, server_key = await _inside_websocket(stream, opened), None
            else:
                await upgrade(
                    stream,
                    host=opened.host,
                    path=opened.path,
                    ideal_node=opened.ideal_node,
                    fast_start=server_key is not None,
                )
            return await Client.handshake(
                stream,
                self._private_key,
                can_ack_pings=self._options.can_ack_pings,
                is_prober=self._options.is_prober,
                mesh_key=self._options.mesh_key,
                server_public_key=server_key,
                app_name=self._options.app_name,
            )
        except (ConnectionClosed, ProtocolError, BoxError) as error:
            stream.abort()
            raise DialError(f"{self._target}: {error}") from error
        except BaseException:
            stream.abort()
            raise

    async def _secure(self, stream: Stream, node: DerpNode) -> tuple[Stream, NodePublic | None]:
        """Shake hands with the node; return the inside and the relay's key if the metacert told it."""
        verify = not (self._options.insecure or node.insecure_for_tests)
        pin, cert_name = None, node.cert_name or None
        if node.cert_name.startswith(PIN_PREFIX):
            pin, cert_name = _pin(node.cert_name), None
        context = self._context(verify, pin)
        inside = await TlsStream.connect(stream, context, node.host_name, cert_name=cert_name)
        key = announced_key(inside.peer_chain) if inside.version == "TLSv1.3" else None
        return Stream.of(inside), key

    async def _secure_proxy(self, stream: Stream, host: str) -> Stream:
        return Stream.of(await TlsStream.connect(stream, self._context(True, None), host))

    def _context(self, verify: bool, pin: bytes | None) -> ClientContext:
        """Return the context for these rules; reading the system's roots takes a while, so it is kept."""
        context = self._contexts.get((verify, pin))
        if context is None:
            context = ClientContext(verify=verify, cafile=self._options.cafile, pin=pin)
            self._contexts[verify, pin] = context
        return context


async def _inside_websocket(stream: Stream, opened: Opened) -> Stream:
    # Costs a start more than all the rest and few need it.
    from fastderp.client.websocket import WebSocketStream

    return Stream.of(
        await WebSocketStream.open(stream, host=opened.host, path=opened.path, https=opened.https)
    )


def _check_type(name: str, key: object, wanted: type[NodePrivate] | type[MeshKey]) -> None:
    # Not quoted: it is a secret, in whatever form.
    if not isinstance(key, wanted):
        raise TypeError(
            f"{name} is a {wanted.__name__}, not {type(key).__name__}; {wanted.__name__}.from_text reads its text"
        )


def _pin(cert_name: str) -> bytes:
    try:
        return certificate_pin(cert_name)
    except ValueError as error:
        raise DialError(str(error)) from None
