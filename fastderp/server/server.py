"""The relay that `fastderp-relay` runs and a program can embed. ARCHITECTURE §2, §8.

Listeners and logins are in front, the data plane behind. Loop thread only, beside its workers.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastderp.dataplane.plane import ClosedEvent, DropEvent, Plane
from fastderp.errors import ConnectionClosed, DerpError
from fastderp.server.accept.drain import drain
from fastderp.server.accept.duplicate_keys import Duplicates
from fastderp.server.accept.listener import IDLE_S, LOGIN_BUDGET_S, Listener, listener_metrics
from fastderp.server.accept.registrar import Registrar, Verify
from fastderp.server.accept.waves import announce_restart
from fastderp.server.admission.client_rate import ClientRate
from fastderp.server.admission.connected_client import ConnectedClient, connected_clients
from fastderp.server.admission.limits import Limits
from fastderp.server.admission.rate_limit import RateLimit
from fastderp.server.certificates.certificate import CertificateSource, check_tls
from fastderp.server.certificates.metacert import meta_cert
from fastderp.server.http.pages import DRAINING, Site
from fastderp.server.http.routes import Routes, relay_routes
from fastderp.server.mesh.forwarders import PacketForwarder
from fastderp.server.mesh.region import Region, mesh_peers
from fastderp.server.net.listen import client_options, listen_sockets
from fastderp.server.observe import traffic
from fastderp.server.observe.connection_log import ConnectionLog
from fastderp.server.observe.consistency import inconsistencies
from fastderp.server.observe.loop_lag import LoopLag
from fastderp.server.observe.maintenance import Maintenance
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.traffic import BytesSentRecv
from fastderp.server.observe.values import Value, counted_values
from fastderp.server.settings import ProxySettings
from fastderp.tls.context import ClientContext, ServerContext
from fastderp.util import bounds
from fastderp.util.arguments import check_type
from fastderp.util.loops import check_loop
from fastderp.util.token_bucket import TokenBucket
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic, raw_key

if TYPE_CHECKING:
    from fastderp.server.accept.embedded import EmbeddedSessions, Reader, Writer
    from fastderp.server.http.clients import ClientsPage
    from fastderp.server.http.tunnel import Tunnels
    from fastderp.server.mesh.dial import JoinSocket
    from fastderp.server.mesh.links import MeshPeer

# Plane events per loop iteration: a mesh peer may announce 250,000 keys at once.
_EVENTS_PER_ITERATION = 256


class Server:
    """A DERP relay. PROTOCOL §3 to §9.

    `listen` serves an address, `accept` one connection; `async with` starts and closes the relay.

    Args:
        private_key: the relay's identity; None makes a new one.
        write_timeout: seconds a client may leave a frame unread before its close; 0 for no limit.
        mesh_key: the region's secret; clients that send it get a mesh peer's rights. A sequence
            allows a change of keys: our links send the first, clients may send any.
        mesh_tls: the trusted roots of our links to other relays; None for the system's roots.
        verify: awaited with key, ClientInfo and IP of each client that is not a mesh peer;
            a false answer or an error refuses it. `Admission` is one. PROTOCOL §8.
        rate_limit: the rate limit of each client; None also omits it from the metrics.
        rtt_stats: sample the clients' round-trip times every 10 seconds.
        duplicate_health: send Health frames to clients that share a key for more than 90 s.
        disable_fighters: send nothing to clients that fight over a key; otherwise the client that
            sent last gets the packets. PROTOCOL §6.3.
        queue_packets: packets of each kind, disco and other, that wait for a slow client; 0 for as
            many as fit into 256 KiB and at least 32.
        watched_drops: log dropped packets for these keys, and the reason.
        prober_logs: log every login and end of clients whose ClientInfo marks them as probers.
        sender_cardinality: estimate the distinct peers that send to each client. PROTOCOL §22.
        workers: threads of the data plane; 0 for one per core that affinity and CPU quota leave.
        login_timeout: seconds from accept to login.
        disallowed_app_names: refuse clients with these AppNames before `verify`, mesh peers
            excepted. PROTOCOL §22.
        login_memory_bytes: memory of all connections before their login. When it is used up, TLS
            handshakes queue, and the connections that hold most are closed, the oldest first.

    Raises ValueError for values out of bounds, TypeError for a text instead of a key or of several
    names, `dataplane.plane.PlaneError` (a DerpError) when memory or descriptors are out.
    """

    def __init__(
        self,
        private_key: NodePrivate | None = None,
        *,
        write_timeout: float = 2.0,
        mesh_key: MeshKey | Sequence[MeshKey] | None = None,
        mesh_tls: ClientContext | None = None,
        verify: Verify | None = None,
        rate_limit: RateLimit | None = None,
        rtt_stats: bool = True,
        duplicate_health: bool = True,
        disable_fighters: bool = False,
        queue_packets: int = 0,
        watched_drops: Iterable[NodePublic] = (),
        prober_logs: bool = False,
        sender_cardinality: bool = False,
        workers: int = 0,
        login_timeout: float = LOGIN_BUDGET_S,
        disallowed_app_names: Collection[str] = (),
        login_memory_bytes: int = bounds.LOGIN_MEMORY_BYTES,
    ) -> None:
        bounds.QUEUE_PACKETS.check_argument("queue_packets", queue_packets, whole=True)
        bounds.WORKERS.check_argument("workers", workers, whole=True)
        bounds.WRITE_TIMEOUT.check_argument("write_timeout", write_timeout)
        bounds.LOGIN_TIMEOUT.check_argument("login_timeout", login_timeout)
        bounds.LOGIN_MEMORY.check_argument("login_memory_bytes", login_memory_bytes, whole=True)
        if private_key is not None:
            check_type("private_key", private_key, NodePrivate)
        if isinstance(disallowed_app_names, str):
            raise TypeError("disallowed_app_names must be a collection of names, not one str")
        self._private_key = private_key or NodePrivate.generate()
        self._login_timeout_s = login_timeout
        self._plane = plane = Plane(
            workers=workers,
            write_timeout_s=write_timeout,
            disable_fighters=disable_fighters,
            queue_packets=queue_packets,
            watch_drops=[raw_key("watched_drops", key) for key in watched_drops],
            sender_cardinality=sender_cardinality,
        )
        self._connection_log = ConnectionLog(prober_logs=prober_logs)
        self._client_rate = ClientRate(plane, self._private_key)
        self._duplicates = (
            Duplicates(plane.handles, plane.set_duplicate) if duplicate_health else None
        )
        mesh_keys = [mesh_key] if isinstance(mesh_key, MeshKey) else mesh_key or ()
        join: JoinSocket = lambda *link: self._registrar.join_link(*link)  # noqa: E731
        self._region = Region(plane, self._private_key, mesh_keys, join, mesh_tls)
        self._registrar = Registrar(
            self._private_key,
            plane,
            self._region,
            self._connection_log,
            self._client_rate,
            self._duplicates,
            verify,
            disallowed_app_names,
            login_memory_bytes,
        )
        self._embedded: EmbeddedSessions | None = None
        self._round_trips = (
            traffic.RoundTrips(plane, self._registrar.bridged_round_trips_us) if rtt_stats else None
        )
        self._maintenance = Maintenance(
            plane,
            self._round_trips,
            self._connection_log,
            lambda: self._registrar.login_memory.freed_bytes,
        )
        self._loop_lag = LoopLag()
        self._on_closed: list[Callable[[ClosedEvent], object]] = [
            self._connection_log.note_closed,
            self._registrar.ended,
            *self._region.on_closed,
        ]
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        if rate_limit is not None:
            self.set_rate_limit(rate_limit)

    # Start and stop

    def start(self) -> None:
        """Start the data plane on the running loop; a no-op when started. `listen` calls it.

        Raises ConnectionClosed when the relay was closed, PlaneError when a thread is refused,
        WrongLoopError in another loop than the first time.
        """
        check_loop("relay", self._loop)
        if self._closing is not None:
            raise ConnectionClosed("the relay is closed")
        if self._loop is None:
            loop = asyncio.get_running_loop()
            self._plane.start()
            self._registrar.open(loop)
            self._maintenance.start()
            self._loop_lag.start(loop)
            loop.add_reader(
                self._plane.fileno(), supervisor.guarded("plane events", self._on_plane_events)
            )
            self._loop = loop

    def listen(
        self,
        host: str | Sequence[socket.socket] = "",
        port: int = 3340,
        *,
        tls: ServerContext | CertificateSource | None = None,
        routes: Routes | None = None,
        keepalive_idle_s: float = 600.0,
        user_timeout_s: float = 15.0,
        idle_s: float = IDLE_S,
        accept_limiter: TokenBucket | None = None,
        tunnels: Tunnels | None = None,
        proxies: ProxySettings = ProxySettings(),
        reuse_port: bool = False,
    ) -> Listener:
        """Accept connections on an address from now on. PROTOCOL §9.1.

        Args:
            host: "" for every address, IPv4 and IPv6; unix:PATH; or sockets that listen already.
            port: TCP port, 0 for a free one.
            tls: a `tls.context.ServerContext`, a `CertificateSource` of several, or None for HTTP.
            routes: the handler of each path; None for the relay's own (`routes.relay_routes`).
            keepalive_idle_s: seconds of silence before TCP probes a client.
            user_timeout_s: seconds that data may stay unacknowledged before TCP drops the client.
            idle_s: seconds an HTTP connection may wait before its next request.
            accept_limiter: connections above its rate are closed at once.
            tunnels: serves CONNECT over TLS; None refuses it. The caller closes it.
            proxies: which peers are proxies, and what they send.
            reuse_port: share the port with other processes that do so, too.

        Raises ValueError for a number out of bounds, TypeError for `tls` of another type, ListenError
        (also an OSError) that names an address that is in use, and what `start` raises.
        """
        bounds.PORT.check_argument("port", port, whole=True)
        bounds.KEEPALIVE.check_argument("keepalive_idle_s", keepalive_idle_s)
        bounds.USER_TIMEOUT.check_argument("user_timeout_s", user_timeout_s)
        bounds.IDLE.check_argument("idle_s", idle_s)
        check_tls(tls)
        self.start()
        options = client_options(keepalive_idle_s, user_timeout_s)
        sockets = listen_sockets(host, port, options, reuse_port=reuse_port)
        return Listener(
            self._registrar,
            sockets,
            routes or relay_routes(Site(unready=self.unready)),
            tls,
            login_budget_s=self._login_timeout_s,
            idle_s=idle_s,
            accept_limiter=accept_limiter,
            tunnels=tunnels if tls is not None else None,
            proxies=proxies,
            reuse_port=reuse_port,
            listeners=self._listeners,
            options=None if isinstance(host, str) else options,
        )

    async def serve(
        self,
        host: str = "",
        port: int = 3340,
        *,
        tls: ServerContext | CertificateSource | None = None,
    ) -> None:
        """Listen as `listen` does and serve until `close` is called or this task is cancelled.

        `host`, `port` and `tls` are those of `listen`. Its errors close the relay, as does the
        end of this task. PROTOCOL §9.1.
        """
        try:
            self.listen(host, port, tls=tls)
            await self._closed.wait()
        finally:
            await self.close()

    async def drain(self, seconds: float = 10.0) -> None:
        """Send the clients away within `seconds`, and return early when all are gone.

        Each client gets the time at which to reconnect; its session is closed at that time, after
        what waits for it is written. Probes and new logins get 503, or are refused by closed ports
        where clients can log in elsewhere. `close` has to follow. PROTOCOL §6.11.

        Raises ValueError for a time out of bounds, and what `start` raises.
        """
        bounds.DRAIN.check_argument("seconds", seconds)
        self.start()
        has_others = self._region.has_other_relays
        await drain(self._plane, self._registrar, self._listeners, seconds, has_others)

    @property
    def n_draining(self) -> int:
        """The number of clients that `drain` has not sent away yet."""
        return self._registrar.waves.n_left if self._registrar.waves is not None else 0

    def unready(self) -> list[str]:
        """Return why no new clients should come; nothing while the relay is ready."""
        return [DRAINING] if self._registrar.waves is not None else []

    async def close(self) -> None:
        """Close every listener and connection and end the data plane's threads. Safe to repeat.

        WebSockets get close code 1001, TLS connections a close_notify; peers that do not read it
        are dropped after 2 seconds. Raises WrongLoopError as `start` does. PROTOCOL §6.11.
        """
        check_loop("relay", self._loop)
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._shut_down())
            self._closing.add_done_callback(lambda _: self._closed.set())
        await asyncio.shield(self._closing)

    async def _shut_down(self) -> None:
        """Undo `start`: close the listeners first, then the connections."""
        self._maintenance.stop()
        self._loop_lag.stop()
        self._client_rate.close()
        for listener in self._listeners:
            listener.close()
        await self._region.close()
        if self._loop is not None:
            self._registrar.bridges.leave()
            self._loop.remove_reader(self._plane.fileno())
        self._plane.close()
        self._on_plane_events(n_most=0)
        if self._loop is not None:
            async with asyncio.TaskGroup() as closing:
                closing.create_task(self._registrar.bridges.close())
                if self._embedded is not None:
                    closing.create_task(self._embedded.close())
            self._registrar.close()
        self._connection_log.close()

    async def __aenter__(self) -> Server:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # A connection of the program

    async def accept(
        self, reader: Reader, writer: Writer, remote: tuple[str, int] = ("", 0)
    ) -> None:
        """Serve one DERP connection over a pair of streams until it ends; the caller has done HTTP.

        Args:
            reader, writer: asyncio streams or objects with the same methods; closed at the end.
            remote: (ip, port) for `verify`, watchers and logs.

        Raises LoginError when the login is malformed or refused, TimeoutError when it takes too
        long, asyncio.IncompleteReadError when the client leaves before it, ConnectionClosed when
        the relay is closed before it. PROTOCOL §3.
        """
        try:
            self.start()
            if self._registrar.waves is not None:
                raise ConnectionClosed(DRAINING)
        except DerpError:
            writer.close()
            raise
        if self._embedded is None:
            from fastderp.server.accept.embedded import EmbeddedSessions

            self._embedded = EmbeddedSessions(self._registrar)
        await self._embedded.serve(reader, writer, remote, self._login_timeout_s)

    # The region

    @property
    def mesh_keys(self) -> list[MeshKey]:
        """The secrets that a mesh peer may send; our links send the first. PROTOCOL §7.1.

        It may be assigned at any time, without zero keys.
        """
        return list(self._region.keys)

    @mesh_keys.setter
    def mesh_keys(self, keys: Iterable[MeshKey]) -> None:
        self._region.set_keys(keys)

    @property
    def mesh_key(self) -> MeshKey:
        """The secret that our links send, or the zero key; assigning replaces all. PROTOCOL §7.1."""
        return self._region.key

    @mesh_key.setter
    def mesh_key(self, key: MeshKey) -> None:
        self._region.set_keys([key])

    @property
    def has_mesh_key(self) -> bool:
        """Whether a mesh key is set. PROTOCOL §7.1."""
        return bool(self._region.keys)

    def set_mesh_peers(self, peers: Iterable[MeshPeer | str]) -> None:
        """Replace the relays of the region that this relay is linked to. PROTOCOL §7.

        Args:
            peers: members, or text for `MeshPeer.parse`: `host[:port]`, `host[:port]/dialhost` or a
                URL. This relay itself may be among them.

        A link that fails is logged and dialled again. Raises ValueError for a malformed member and
        without a mesh key, and what `start` raises.
        """
        members = mesh_peers(peers)
        if members and not self.has_mesh_key:
            raise ValueError("a relay without a mesh key cannot be linked to others")
        self.start()
        self._region.set_peers(members)

    def add_packet_forwarder(self, key: NodePublic, forwarder: PacketForwarder) -> None:
        """Hand packets for a `key` on another relay to `forwarder`. PROTOCOL §7.5.

        The oldest of several forwarders for a key is used. Adding it again changes nothing.
        Raises ConnectionClosed when the relay was closed, PlaneError or OSError when threads,
        memory or descriptors are out.
        """
        self.start()
        self._region.forwarders.add(raw_key("key", key), forwarder)

    def remove_packet_forwarder(self, key: NodePublic, forwarder: PacketForwarder) -> None:
        """Undo `add_packet_forwarder` for this `key` and `forwarder`. PROTOCOL §6.7, §7.5.

        Clients that got packets from the key get a PeerGone if this was the last route to it.
        """
        self._region.forwarders.remove(raw_key("key", key), forwarder)

    # Settings that change while it runs

    @property
    def write_timeout(self) -> float:
        """Seconds a client may leave a frame unread; 0 for no limit. PROTOCOL §6.6.

        A client that does not read keeps the previous limit. Raises ValueError out of bounds.
        """
        return self._plane.write_timeout_s

    @write_timeout.setter
    def write_timeout(self, seconds: float) -> None:
        bounds.WRITE_TIMEOUT.check_argument("write_timeout", seconds)
        self._plane.write_timeout_s = seconds

    @property
    def login_timeout(self) -> float:
        """Seconds from accept to login, of later connections. Raises ValueError out of bounds."""
        return self._login_timeout_s

    @login_timeout.setter
    def login_timeout(self, seconds: float) -> None:
        bounds.LOGIN_TIMEOUT.check_argument("login_timeout", seconds)
        self._login_timeout_s = seconds
        for listener in self._listeners:
            listener.login_budget_s = seconds

    def set_rate_limit(self, limit: RateLimit) -> None:
        """Limit the rate of each client and notify it; mesh peers are exempt. PROTOCOL §6.8.

        Each client begins with a full burst. `RateLimit()` ends the limit but keeps its metrics.
        """
        self.set_limits(Limits(limit))

    def set_limits(self, limits: Limits) -> None:
        """Replace all `limits` of clients as `set_rate_limit` does. PROTOCOL §6.8, §9.9."""
        self._client_rate.set(limits, self._loop)
        self._registrar.addresses.set(limits, self._plane.sessions)

    def announce_restart(
        self, reconnect_in_s: float, try_for_s: float, *, spread_s: float = 0.0
    ) -> int:
        """Announce a restart to every client; return how many got it. PROTOCOL §4, §6.11.

        Args:
            reconnect_in_s: seconds after which clients should reconnect.
            try_for_s: seconds of further attempts before a client chooses another relay.
            spread_s: a random part of these seconds is added for each client.

        Raises ValueError for times that do not fit into the frame, which has room for 1,193 hours.
        """
        bounds.RESTART.check_argument("reconnect_in_s + spread_s", reconnect_in_s + spread_s)
        bounds.RESTART.check_argument("try_for_s", try_for_s)
        return announce_restart(self._plane, reconnect_in_s, try_for_s, spread_s)

    # State and metrics

    @property
    def private_key(self) -> NodePrivate:
        """The relay's identity; it is constant."""
        return self._private_key

    @property
    def public_key(self) -> NodePublic:
        """The relay's public key, by which clients identify it."""
        return self._private_key.public_key

    @cached_property
    def meta_cert(self) -> bytes:
        """The last certificate (DER) of a chain, with our key for clients. PROTOCOL §10."""
        return meta_cert(self.public_key.hex)

    @property
    def listeners(self) -> list[Listener]:
        """The listeners that `listen` has returned."""
        return list(self._listeners)

    @property
    def verify(self) -> Verify | None:
        """The verifier of clients, assignable; None admits every client. PROTOCOL §8."""
        return self._registrar.verify

    @verify.setter
    def verify(self, verify: Verify | None) -> None:
        self._registrar.verify = verify

    @property
    def rate_limit(self) -> RateLimit | None:
        """The rate limit of each client; None when no limit was ever set. PROTOCOL §6.8."""
        return self._client_rate.limit

    def stuck_workers(self) -> list[int]:
        """Return the data plane's threads that have not woken up since the last call."""
        return self._plane.stuck_workers()

    def is_client_connected(self, key: NodePublic) -> bool:
        """Whether a client with this `key` is logged in to this relay. PROTOCOL §6.1."""
        return self._plane.is_connected(raw_key("key", key))

    def clients(self) -> list[ConnectedClient]:
        """Return key and address per client connection, mesh peers excepted. PROTOCOL §6.1."""
        return [client for _, client in connected_clients(self._plane)]

    def disconnect(self, unwanted: Callable[[ConnectedClient], bool]) -> list[ConnectedClient]:
        """Close the clients that are `unwanted`, never mesh peers; return them. PROTOCOL §6.2."""
        closed = []
        for handle, client in connected_clients(self._plane):
            if unwanted(client) and self._plane.close_session(handle):
                closed.append(client)
        return closed

    def metrics(self) -> dict[str, Value]:
        """Return all metrics by the names of PROTOCOL §14; labelled metrics are dicts by label."""
        plane: dict[str, Any] = self._plane.counters()
        if self._client_rate.limit is None:
            del plane["rate_limit_per_client_waited"]
        plane["peer_gone_disconnected_frames"] += self._region.presence.n_gone_sent
        # The data plane opens records of TLS 1.3 only.
        active = Counter({"1.3": plane.pop("sealed_connections")})
        return {
            **counted_values(plane),
            **self._connection_log.metrics(),
            **self._registrar.metrics(),
            **self._loop_lag.metrics(),
            **self._client_rate.metrics(),
            **supervisor.metrics(),
            **self._region.metrics(),
            "derp_tcp_rtt": dict(self._round_trips.counts) if self._round_trips else {},
            **listener_metrics(self._listeners, self._registrar, active),
        }

    def expvar(self) -> dict[str, Any]:
        """Return the metrics of the "derp" object in `/debug/vars`. PROTOCOL §9.7, §14."""
        from fastderp.server.observe.metrics import expvar

        return dict(expvar(self.metrics())["derp"])

    async def debug_traffic(
        self, interval_s: float = traffic.ROUND_S
    ) -> AsyncIterator[BytesSentRecv]:
        """Yield, every `interval_s` seconds, the connections with traffic since. PROTOCOL §6.10."""
        async for moved in traffic.rounds(self._plane, self._registrar.bridged_bytes, interval_s):
            for one in moved:
                yield one

    def traffic_lines(self) -> AsyncIterator[bytes]:
        """Return the endless body of `/debug/traffic`: JSON every 2 seconds. PROTOCOL §6.10."""
        return traffic.lines(self._plane, self._registrar.bridged_bytes)

    def clients_page(self) -> ClientsPage:
        """Return the content of `/debug/clients/`, for `DebugPages`. PROTOCOL §22."""
        from fastderp.server.http.clients import ClientsPage

        return ClientsPage(self._plane.sessions, self._registrar)

    def consistency_check(self) -> list[str]:
        """Compare the data plane's tables; describe each mismatch. PROTOCOL §6.9."""
        return inconsistencies(self._plane, lambda: self._region.announced)

    # Events of the data plane

    def _on_plane_events(self, n_most: int = _EVENTS_PER_ITERATION) -> None:
        """Dispatch up to `n_most` events, 0 for all; the rest keep the descriptor readable.

        A handler that fails stops neither the other handlers nor later events.
        """
        for event in self._plane.events(n_most):
            if isinstance(event, ClosedEvent):
                event = self._registrar.explained(event)
                for handler in self._on_closed:
                    supervisor.guard("session end", handler, event)
            elif isinstance(event, DropEvent):
                supervisor.guard("drop report", self._connection_log.note_drop, event)
            elif not supervisor.guard("control frame", self._region.received, event):
                # The state shared with this peer is unknown now, so it must log in again.
                self._plane.close_session(event.handle)
