"""A DERP client that connects and reconnects to its relay (PROTOCOL §13).

Any number of tasks use it; one of them receives at a time. Belongs to the event loop that it is
first used in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Self

from fastderp.client.arguments import (
    BytesLike,
    bytes_of,
    check_app_name,
    check_limit,
    check_packet_size,
)
from fastderp.client.backoff import DEFAULT_BACKOFF, Backoff
from fastderp.client.client import PING_TIMEOUT_S, Client
from fastderp.client.connector import OVER, Connector
from fastderp.client.dialer import Dialer, DialOptions
from fastderp.client.events import ConnectionState, EventStream
from fastderp.errors import ConcurrencyError, ConnectionClosed
from fastderp.net.target import RegionGetter, RegionTarget, UrlTarget
from fastderp.util.arguments import check_type
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.messages import Message


class HTTPClient:
    """A client of a relay or a region, by URL. PROTOCOL §13.

        async with HTTPClient("https://derp.example.com/derp", key) as client:
            await client.send(peer, b"hello")
            message = await client.recv()

    `async with` connects, unless the client is `lazy`, and closes. Outside of it the client
    connects on its first use: `connect`, `recv`, `recv_many`, `send`, `send_many`,
    `forward_packet`, `close_peer` and `watch_connection_changes` connect when there is no
    connection; `try_send`, pings, pongs and `note_preferred` never do.

    When a connection fails, the call in progress raises the error and is not repeated; the next
    call connects again. With `reconnect` the client reconnects automatically instead: calls wait
    for that, and raise only when it is closed. A packet is sent at most once in every case.
    `backoff` determines the pauses after failed attempts; a relay that announces a restart is
    dialled at the announced time. `state` and `events` report the progress.

    Each connection has a generation number, 1 for the first, and its first message is ServerInfo.
    `close` is final: every later call that needs a connection raises ConnectionClosed. The
    rules of `Client` for sending and receiving also apply.
    """

    def __init__(
        self,
        url: str,
        private_key: NodePrivate,
        *,
        cert_name: str = "",
        dial_host: str = "",
        can_ack_pings: bool = True,
        is_prober: bool = False,
        mesh_key: MeshKey | None = None,
        app_name: str = "",
        cafile: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        prefer_ipv6: bool = False,
        control_messages: bool = False,
        reconnect: bool = False,
        backoff: Backoff = DEFAULT_BACKOFF,
        lazy: bool = False,
    ) -> None:
        """Prepare to use the relay at `url`.

        Args:
            url: http or https with any path, /derp by default. ws or wss carries DERP inside a
                WebSocket, which some proxies need. The relay is dialled directly, whatever proxies
                the environment names.
            private_key: the client's key; its public half is the client's address.
            cert_name: expected in the certificate instead of the URL's host, or `sha256-raw:` and a
                hash, as in a DerpNode.
            dial_host: host to dial instead of the URL's.
            can_ack_pings: answer every Ping of the relay, and announce that at the login.
            is_prober: announce to the relay that this client only measures.
            mesh_key: the region's secret, which gives mesh privileges.
            app_name: name of the program, for the relay's statistics: at most 32 characters of
                printable ASCII.
            cafile: PEM file of roots trusted besides the system's and Let's Encrypt's; read at the
                first connect over TLS, which raises TlsError if it is unusable.
            insecure: accept any certificate; for tests.
            prefer_ipv6: give IPv6 a head start of 200 ms.
            control_messages: return KeepAlive, Ping and Pong from `recv`, and leave the answers to
                the caller's `send_pong`.
            reconnect: connect again whenever the connection is lost, until `close`.
            backoff: the waits between attempts.
            lazy: `async with` does not connect.

        Raises ValueError for an unusable `url`, `cert_name` or `app_name`, TypeError for an
        argument of another type, such as a key's text.
        """
        for name, value in (("url", url), ("cert_name", cert_name), ("dial_host", dial_host)):
            check_type(name, value, str)
        options = DialOptions(
            can_ack_pings=can_ack_pings,
            is_prober=is_prober,
            mesh_key=mesh_key,
            app_name=app_name,
            cafile=cafile,
            insecure=insecure,
            prefer_ipv6=prefer_ipv6,
            control_messages=control_messages,
        )
        target = UrlTarget(url, cert_name, dial_host)
        self._set_up(target, private_key, options, reconnect, backoff, lazy)

    @classmethod
    def for_region(
        cls,
        region_getter: RegionGetter,
        private_key: NodePrivate,
        *,
        use_tls: bool | None = None,
        use_websocket: bool | None = None,
        can_ack_pings: bool = True,
        is_prober: bool = False,
        mesh_key: MeshKey | None = None,
        app_name: str = "",
        cafile: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        prefer_ipv6: bool = False,
        control_messages: bool = False,
        reconnect: bool = False,
        backoff: Backoff = DEFAULT_BACKOFF,
        lazy: bool = False,
    ) -> Self:
        """Prepare to use the first node that answers in the region that `region_getter` returns.

        Args:
            region_getter: called on every connect; None makes that fail. Its nodes are dialled
                through the proxies that HTTPS_PROXY and NO_PROXY name.
            private_key: the client's key; its public half is the client's address.
            use_tls: False is for tests; unset it follows TS_DEBUG_USE_DERP_HTTP.
            use_websocket: put DERP inside a WebSocket; unset it follows TS_DEBUG_DERP_WS_CLIENT.
            can_ack_pings, is_prober, mesh_key, app_name, cafile, insecure, prefer_ipv6: as for a
                URL.
            control_messages, reconnect, backoff, lazy: as for a URL.

        Raises ValueError for an unusable `app_name`, TypeError for an argument of another type.
        Calls that connect also raise the errors of `region_getter`, and TypeError when it returns
        anything else. PROTOCOL §13.
        """
        options = DialOptions(
            can_ack_pings=can_ack_pings,
            is_prober=is_prober,
            mesh_key=mesh_key,
            app_name=app_name,
            cafile=cafile,
            insecure=insecure,
            prefer_ipv6=prefer_ipv6,
            control_messages=control_messages,
        )
        client = cls.__new__(cls)
        target = RegionTarget(region_getter, use_tls, use_websocket)
        client._set_up(target, private_key, options, reconnect, backoff, lazy)
        return client

    def _set_up(
        self,
        target: UrlTarget | RegionTarget,
        private_key: NodePrivate,
        options: DialOptions,
        reconnect: bool,
        backoff: Backoff,
        lazy: bool,
    ) -> None:
        check_type("private_key", private_key, NodePrivate)
        if options.mesh_key is not None:
            check_type("mesh_key", options.mesh_key, MeshKey)
        check_app_name(options.app_name)
        check_type("backoff", backoff, Backoff)
        self._private_key = private_key
        self._lazy = lazy
        dialer = Dialer(target, private_key, options)
        self._connector = Connector(dialer, backoff, reconnect=reconnect)
        self._is_receiving = False

    @property
    def public_key(self) -> NodePublic:
        """The client's public key, which is its address."""
        return self._private_key.public_key

    @property
    def server_public_key(self) -> NodePublic | None:
        """The key of the relay of the present or latest connection; None before the first."""
        return self._connector.server_public_key

    @property
    def local_addr(self) -> tuple[str, int]:
        """Our address and port. Raises ConnectionClosed when there is no connection."""
        return self._connector.connected_client().local_addr

    @property
    def generation(self) -> int:
        """The number of connections so far, including the present one."""
        return self._connector.generation

    @property
    def state(self) -> ConnectionState:
        """The state of the connection; CONNECTED until its end is detected. PROTOCOL §13."""
        return self._connector.state

    @property
    def is_connected(self) -> bool:
        """Whether the state is CONNECTED: the relay has accepted the login."""
        return self._connector.state is ConnectionState.CONNECTED

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._connector.is_closed

    def events(self) -> EventStream:
        """Return an iterator over the events of the connection from now on, until `close`.

        PROTOCOL §13.

        async for event in client.events(): ...

        Each call returns another iterator, and each yields every event.
        """
        return self._connector.events()

    async def connect(self) -> None:
        """Connect unless there is a connection, and wait until the relay has accepted the login.

        Raises DialError that names the cause, also when it takes longer than 10 s. With `reconnect`
        the call joins a running attempt, and may take longer. PROTOCOL §3, §13.
        """
        await self._connector.connect()

    # Sending

    async def send(self, destination: NodePublic, data: BytesLike) -> None:
        """Send a packet, `data` of at most 65536 bytes, to `destination`, see `Client.send`.

        Raises DialError when there is no connection and none can be made, ConnectionClosed,
        ConnectionLost or ProtocolError when the connection is over, TypeError and ValueError for
        other arguments. PROTOCOL §4, §13.
        """
        if not self._try_send(destination, data):
            check_type("destination", destination, NodePublic)
            data = bytes_of("data", data)
            check_packet_size(len(data))
            await self._connector.do(lambda client: client.send(destination, data))

    def try_send(self, destination: NodePublic, data: BytesLike) -> bool:
        """Send `data` to `destination` if that needs no waiting; return whether it was sent.

        False means dropped, as in `Client.try_send`, or that there is no connection. Raises
        ConnectionClosed after `close`, TypeError and ValueError as `send` does. PROTOCOL §4, §13.
        """
        if self._connector.is_closed:
            raise ConnectionClosed("the client is closed")
        return self._try_send(destination, data)

    def _try_send(self, destination: NodePublic, data: BytesLike) -> bool:
        """Send unless that has to wait or there is no connection."""
        client = self._connector.client
        try:
            return client is not None and client.try_send(destination, data)
        except OVER:
            return False

    async def send_many(self, packets: Iterable[tuple[NodePublic, BytesLike]]) -> None:
        """Send `packets`, pairs of destination and data, in order, see `Client.send_many`.

        Raises what `send` does. PROTOCOL §4.
        """
        for destination, data in packets:
            if not self._try_send(destination, data):
                await self.send(destination, data)

    async def forward_packet(
        self, source: NodePublic, destination: NodePublic, data: BytesLike
    ) -> None:
        """Forward a packet from `source` to `destination`, see `Client.forward_packet`.

        Its `data` has at most 65536 bytes.

        Raises what `send` does. PROTOCOL §7.6.
        """
        await self._connector.do(lambda client: client.forward_packet(source, destination, data))

    async def close_peer(self, target: NodePublic) -> None:
        """Ask the relay to close the connections of `target`, see `Client.close_peer`.

        Raises what `send` does. PROTOCOL §5.
        """
        await self._connector.do(lambda client: client.close_peer(target))

    async def watch_connection_changes(self) -> None:
        """Ask for a PeerPresent of every client, on this connection and all that follow.

        See `Client.watch_connection_changes`.

        Connects when there is no connection. Raises DialError when none can be made,
        ConnectionClosed, ConnectionLost or ProtocolError when the connection is over; later
        connections repeat the request in any case. PROTOCOL §7.2.
        """
        if self._connector.watching or self._connector.client is None:
            self._connector.watching = True
            await self._connector.ready()
        else:
            self._connector.watching = True
            await self._connector.do(Client.watch_connection_changes)

    async def note_preferred(self, preferred: bool) -> None:
        """Report to the relay of each connection whether it is this client's home (`preferred`).

        The report is sent when the value changes and on each new connection. Raises
        ConnectionClosed, ConnectionLost or ProtocolError when the connection is over;
        raises nothing while there is no connection. PROTOCOL §6.6, §13.
        """
        changed, self._connector.preferred = preferred != self._connector.preferred, preferred
        if changed and self._connector.client is not None:
            await self._connector.do(lambda client: client.note_preferred(preferred))

    async def ping(self, timeout_s: float = PING_TIMEOUT_S) -> float:
        """Ping the relay and return the seconds until its pong came, see `Client.ping`.

        Raises PingTimeout after `timeout_s` seconds, ConnectionClosed when there is no connection,
        and the error that ends the connection meanwhile. PROTOCOL §13.
        """
        client = self._connector.connected_client()
        return await self._connector.guard(client, client.ping(timeout_s))

    async def send_ping(self, data: BytesLike) -> None:
        """Send a Ping of 8 bytes of `data`.

        ConnectionClosed without a connection, ValueError for other sizes. PROTOCOL §2.
        """
        client = self._connector.connected_client()
        await self._connector.guard(client, client.send_ping(data))

    async def send_pong(self, data: BytesLike) -> None:
        """Answer a Ping with its 8 bytes of `data`.

        ConnectionClosed without a connection, ValueError for other sizes. PROTOCOL §2.
        """
        client = self._connector.connected_client()
        await self._connector.guard(client, client.send_pong(data))

    # Receiving

    async def recv(self) -> Message:
        """Wait for the next message; the first of each connection is ServerInfo.

        A cancelled call loses no message.

        Raises DialError when there is no connection and none can be made, and what `Client.recv`
        does: ConnectionClosed at an orderly end, ConnectionLost when the connection broke,
        ProtocolError for frames that end it, ConcurrencyError while another task receives.
        PROTOCOL §4, §13.
        """
        client = self._connector.client
        if client is not None and not self._connector.unread:
            message = client.take_ready()
            if message is not None:
                return message
        return (await self.recv_with_generation())[0]

    async def recv_many(self, limit: int | None = None) -> list[Message]:
        """Wait for a message; return up to `limit` of the messages that have arrived.

        Raises what `recv` does. PROTOCOL §4, §13.

        Costs less per message than `recv` when many arrive.
        """
        check_limit(limit)
        first = await self.recv()
        client = self._connector.client
        if self._connector.unread or client is None or limit == 1:
            return [first]
        return [first, *client.take_all_ready(limit - 1 if limit is not None else None)]

    async def recv_with_generation(self) -> tuple[Message, int]:
        """Wait for the next message as `recv` does; return it with its connection's generation.

        PROTOCOL §13.
        """
        self._connector.check_use()
        if self._is_receiving:
            raise ConcurrencyError("another task already receives from this client")
        self._is_receiving = True
        try:
            if self._connector.unread:
                return self._connector.unread.popleft()
            return await self._connector.do(self._receive)
        finally:
            self._is_receiving = False

    async def _receive(self, client: Client) -> tuple[Message, int]:
        generation = self._connector.generation
        try:
            return await client.recv(), generation
        except OVER:
            if self._connector.unread and self._connector.reconnect:
                return self._connector.unread.popleft()
            raise

    def __aiter__(self) -> Self:
        """Iterate over messages until `close`; failures raise, and iterating again reconnects."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.recv()
        except ConnectionClosed:
            if self._connector.is_closed:
                raise StopAsyncIteration from None
            raise

    # Close

    async def close(self) -> None:
        """Close for good.

        Wait at most 1 s for unsent data; waiting calls raise ConnectionClosed. Safe to repeat.
        """
        await self._connector.close()

    async def __aenter__(self) -> Self:
        if not self._lazy:
            try:
                await self.connect()
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        target, state = self._connector.target, self._connector.state.value
        return f"<HTTPClient {self.public_key.short} of {target}, {state}>"
